"""From an INTEGER graph to a streaming network, or an error that names the layer that cannot stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.bounds import certificates, code_ranges
from qcc.ir.graph import Graph, Op, Value, constants
from qcc.ir.types import BATCH
from qcc.verify.windows import Window
from qcc_targets.fpga.stages import (
    Concat,
    Contraction,
    Dataflow,
    Linear,
    Lookup,
    Move,
    Pool,
    Port,
    Product,
    Reduce,
    Requant,
    Stage,
    Stream,
    canonical,
)

Array = NDArray[Any]

FRAME: Final = 1 << 22
"""Elements that a stream may have in a frame: more would need counters and buffers that no device here has."""


def streaming(graph: Graph) -> Dataflow:
    """The stages of ``graph``. Raises TargetError where an operation cannot stream, VerifyError where sums overflow."""
    return _Lowering(graph).run()


@dataclass(frozen=True, slots=True, eq=False)
class _Flow:
    """A tensor in transit: element i of the stream is element ``order[i]`` of the dense tensor of ``shape``."""

    stream: Stream
    shape: tuple[int, ...]
    order: Array

    @property
    def canonical(self) -> bool:
        return np.array_equal(self.order, canonical(self.shape)[1])


class _Lowering:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._arrays = constants(graph)
        self._ranges = code_ranges(graph)
        self._certificates = certificates(graph)
        self._flows: dict[str, _Flow] = {}
        self._stages: list[Stage] = []

    def run(self) -> Dataflow:
        orders = _input_orders(self._graph)
        inputs = []
        for v in self._graph.inputs:
            shape, order = frame_shape(v, "an input"), orders[v.name]
            flow = self._put(v, Stream(v.name, *_extents(shape, order), self._ranges[v.name]), order)
            inputs.append(Port(v.name, flow.stream, shape, v.type.dtype, order))
        for o in self._graph.ops:
            if o.kind == "constant":
                continue
            if (rule := _RULES.get(o.kind)) is None:
                raise TargetError(f"{o}: target 'fpga' has no hardware for this operation")
            rule(self, o)
        outputs = []
        for v in self._graph.outputs:
            flow = self._flow(v, f"the output %{v.name}")
            outputs.append(Port(v.name, flow.stream, flow.shape, v.type.dtype, flow.order))
        if not self._stages:
            raise TargetError(f"graph @{self._graph.name} computes nothing: there is no layer to build")
        read = {s.name for stage in self._stages for s in stage.inputs} | {p.stream.name for p in outputs}
        if unread := [p.stream.name for p in inputs if p.stream.name not in read]:
            raise TargetError(f"no layer reads the input %{unread[0]}: it cannot stream")
        return Dataflow(self._graph.name, tuple(inputs), tuple(self._stages), tuple(outputs))

    def _put(self, v: Value, stream: Stream, order: Array) -> _Flow:
        if stream.size > FRAME:
            raise TargetError(f"%{v.name}: {stream.size} elements a frame; streams here hold at most {FRAME}")
        flow = _Flow(stream, frame_shape(v, "a result"), order)
        self._flows[v.name] = flow
        return flow

    def _flow(self, v: Value, reader: Op | str) -> _Flow:
        if v.name not in self._flows:
            raise TargetError(f"{reader}: %{v.name} is a constant where data must stream; fold it into a layer")
        return self._flows[v.name]

    def _rows(self, o: Op, slot: int = 0) -> Stream:
        """The stream of an operand in rows of pixels. Raises TargetError where it comes in another order."""
        flow = self._flow(o.operands[slot], o)
        if not flow.canonical:
            raise TargetError(
                f"{o}: %{o.operands[slot].name} does not arrive in rows of pixels, channels last; "
                "putting it in order would need a buffer of a whole frame"
            )
        height, width, channels = canonical(flow.shape)[0]
        s = flow.stream
        return Stream(s.name, height, width, channels, s.codes)

    def _emit(self, stage: Stage, o: Op) -> None:
        self._stages.append(stage)
        self._put(o.result, stage.output, canonical(frame_shape(o.result, str(o)))[1])

    def _result(self, o: Op) -> Stream:
        shape = canonical(frame_shape(o.result, str(o)))[0]
        return Stream(o.result.name, *shape, self._ranges[o.result.name])

    def _const(self, o: Op, slot: int) -> Array:
        name = o.operands[slot].name
        if name not in self._arrays:
            raise TargetError(f"{o}: %{name} must be a constant on target 'fpga'")
        return self._arrays[name].astype(np.int64)

    def _requant(self, o: Op, m: int | None, c: int, mr: int | None = None) -> Requant:
        if o.int_attr("qmin") == o.int_attr("qmax"):
            raise TargetError(f"{o}: every element of its result is {o.int_attr('qmin')}; fold it into its readers")
        return Requant(
            np.ones(1, np.int64) if m is None else self._spread(o, m),
            self._spread(o, c),
            None if mr is None else self._spread(o, mr),
            o.int_attr("shift"),
            o.int_attr("qmin"),
            o.int_attr("qmax"),
        )

    def _spread(self, o: Op, slot: int) -> Array:
        """A constant of the epilogue as ``Requant`` has it."""
        shape = frame_shape(o.result, str(o))
        array = self._const(o, slot)
        if o.kind in ("iconv2d", "idense"):
            return np.broadcast_to(array.reshape(-1), (shape[0] if o.kind == "iconv2d" else shape[-1],))
        if array.ndim > len(shape) and array.shape[0] != 1:
            raise TargetError(f"{o}: %{o.operands[slot].name} differs from sample to sample")
        full = np.broadcast_to(array.reshape(array.shape[-len(shape) :] if shape else ()), shape)
        extents, order = canonical(shape)
        spread = full.reshape(-1)[order].reshape(extents)
        return spread[0, 0] if (spread == spread[:1, :1]).all() else spread

    # One rule per operation

    def conv(self, o: Op) -> None:
        groups, weights = o.int_attr("groups"), self._const(o, 1) - _zero_point(o.operands[1])
        outputs, depth, kh, kw = weights.shape
        split = weights.reshape(groups, outputs // groups, depth, kh, kw).transpose(0, 1, 3, 4, 2)
        residual = (self._rows(o, 4),) if len(o.operands) > 4 else ()
        self._contract(o, (self._rows(o), *residual), Window.of(o), split)

    def dense(self, o: Op) -> None:
        """Weights go into the order in which the elements arrive, so that nothing needs to be flattened."""
        flow = self._flow(o.operands[0], o)
        weights = self._const(o, 1) - _zero_point(o.operands[1])
        residual = (self._rows(o, 4),) if len(o.operands) > 4 else ()
        if len(flow.shape) == 3:
            raise TargetError(f"{o}: it reduces the columns of %{o.operands[0].name}, which do not arrive together")
        if len(flow.shape) == 1:
            s = flow.stream
            split = weights[:, flow.order].reshape(1, len(weights), *s.shape)
            window = Window((s.height, s.width), (1, 1), (0, 0, 0, 0), (1, 1))
            self._contract(o, (s, *residual), window, split)
        else:
            window = Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
            self._contract(o, (self._rows(o), *residual), window, weights.reshape(1, len(weights), 1, 1, -1))

    def _contract(self, o: Op, streams: tuple[Stream, ...], window: Window, weights: Array) -> None:
        requant = self._requant(o, 2, 3, 5 if len(o.operands) > 4 else None)
        accumulator = self._certificates[o.result.name].accumulator
        zero = _zero_point(o.operands[0])
        args = (o.kind, streams, self._result(o), window, np.ascontiguousarray(weights), zero, requant, accumulator)
        self._emit(Contraction(*args), o)

    def max_pool(self, o: Op) -> None:
        x, y, window = self._rows(o), self._result(o), Window.of(o)
        if _meets_input(window, x, y):
            y = replace(y, codes=x.codes)
        self._emit(Pool(o.kind, (x,), y, window, "max", 0, None, y.codes), o)

    def sum_pool(self, o: Op) -> None:
        bound = self._certificates[o.result.name].accumulator
        args = (o.kind, (self._rows(o),), self._result(o), Window.of(o), "sum", _zero_point(o.operands[0]))
        self._emit(Pool(*args, self._requant(o, 1, 2), bound), o)  # type: ignore[arg-type]

    def reduce(self, o: Op) -> None:
        x = self._rows(o)
        axes = {a % o.operands[0].type.rank for a in o.ints_attr("axes")}
        rank = o.operands[0].type.rank
        spatial = {2, 3} if rank == 4 else {1} if rank == 3 else set()
        if not spatial or axes != spatial:
            raise TargetError(f"{o}: it reduces axes {sorted(axes)}; only reductions over all pixels stream")
        y = self._result(o)
        y = Stream(y.name, 1, 1, x.channels, y.codes)
        if o.kind == "reduce_max":
            self._emit(Reduce(o.kind, (x,), y, "max", 0, None, x.codes), o)
        else:
            bound = self._certificates[o.result.name].accumulator
            requant = self._requant(o, 1, 2)
            if requant.m.ndim > 1 or requant.c.ndim > 1:
                raise TargetError(f"{o}: its multipliers vary in a way that does not stream")
            self._emit(Reduce(o.kind, (x,), y, "sum", _zero_point(o.operands[0]), requant, bound), o)

    def linear(self, o: Op) -> None:
        slots = range(1, len(o.operands), 2)
        streams = tuple(self._whole(o, s) for s in slots)
        multipliers = tuple(self._spread(o, s + 1) for s in slots)
        self._emit(Linear(o.kind, streams, self._result(o), multipliers, self._requant(o, None, 0)), o)

    def product(self, o: Op) -> None:
        streams = self._whole(o, 0), self._whole(o, 1)
        zeros = _zero_point(o.operands[0]), _zero_point(o.operands[1])
        self._emit(Product(o.kind, streams, self._result(o), zeros, self._requant(o, 2, 3)), o)

    def _whole(self, o: Op, slot: int) -> Stream:
        """A stream of the result's own shape: hardware does not send a pixel twice."""
        if frame_shape(o.operands[slot], str(o)) != frame_shape(o.result, str(o)):
            raise TargetError(f"{o}: %{o.operands[slot].name} would have to be broadcast, which does not stream")
        return self._rows(o, slot)

    def lookup(self, o: Op) -> None:
        x, table = self._rows(o), self._const(o, 1)
        first = int(np.iinfo(o.operands[0].type.numpy).min)
        if table.ndim > 1 and len(o.result.type.shape) != 4:
            raise TargetError(f"{o}: a table for each index of axis 1 streams only where that is the channel")
        self._emit(Lookup(o.kind, (x,), self._result(o), np.atleast_2d(table), first), o)

    def concat(self, o: Op) -> None:
        streams = tuple(self._rows(o, s) for s in range(len(o.operands)))
        rank = o.result.type.rank
        axis = o.int_attr("axis") % rank
        # Axes in the order of transit, slowest first, without the batch.
        transit = (2, 3, 1) if rank == 4 else tuple(range(1, rank))
        if axis not in transit:
            raise TargetError(f"{o}: a concatenation over the batch does not stream")
        where = transit.index(axis)
        outer = prod(o.result.type.shape[a] for a in transit[:where])
        runs = tuple(s.size // outer for s in streams)
        self._emit(Concat(o.kind, streams, self._result(o), outer, runs), o)

    def slice(self, o: Op) -> None:
        axis, start, step = o.int_attr("axis"), o.int_attr("start"), o.int_attr("step")
        steps = {2: (step, 1), 3: (1, step)}
        if o.result.type.rank != 4 or axis == 0 or step < 1 or (axis == 1 and step != 1):
            raise TargetError(f"{o}: only images stream through a slice, over channels without a step")
        pads = {2: (-start, 0, 0, 0), 3: (0, -start, 0, 0)}
        window = Window((1, 1), steps.get(axis, (1, 1)), pads.get(axis, (0, 0, 0, 0)), (1, 1))
        x = self._rows(o)
        self._emit(Move(o.kind, (x,), self._result(o), window, -start if axis == 1 else 0, np.zeros(1, np.int64)), o)

    def pad(self, o: Op) -> None:
        pads = o.ints_attr("pads")
        rank = o.result.type.rank
        if rank != 4 or pads[0] or pads[4]:
            raise TargetError(f"{o}: only images stream through a pad")
        x, y = self._rows(o), self._result(o)
        values = np.array(o.floats_attr("values")).astype(np.int64)
        if values.size > 1:
            values = np.pad(values, (pads[1], pads[5]), mode="edge")
        window = Window((1, 1), (1, 1), (pads[2], pads[3], pads[6], pads[7]), (1, 1))
        self._emit(Move(o.kind, (x,), y, window, pads[1], values), o)

    def reshape(self, o: Op) -> None:
        """Dense indices stay as they are, and so does what is in transit."""
        flow = self._flow(o.operands[0], o)
        self._relabel(o, flow, flow.order)

    def transpose(self, o: Op) -> None:
        flow = self._flow(o.operands[0], o)
        self._relabel(o, flow, _transposed(o)[flow.order])

    def _relabel(self, o: Op, flow: _Flow, order: Array) -> None:
        shape = frame_shape(o.result, str(o))
        s = flow.stream
        extents = canonical(shape)[0] if np.array_equal(order, canonical(shape)[1]) else s.shape
        # A flattened image keeps its extents: a dense layer then may take several channels at once.
        extents = s.shape if len(shape) == 1 else extents
        self._flows[o.result.name] = _Flow(Stream(s.name, *extents, s.codes), shape, order)


def _meets_input(window: Window, x: Stream, y: Stream) -> bool:
    """Whether every position of ``window`` reads at least one pixel of ``x``."""
    (top, left, _, _) = window.pads
    for axis, (count, extent, before) in enumerate(((y.height, x.height, top), (y.width, x.width, left))):
        taps = np.arange(window.kernel[axis]) * window.dilations[axis] - before
        at = np.arange(count)[:, None] * window.strides[axis] + taps[None, :]
        if not ((at >= 0) & (at < extent)).any(axis=1).all():
            return False
    return True


def frame_shape(v: Value, where: str) -> tuple[int, ...]:
    """The shape of one sample. Raises TargetError where several samples are fixed to a frame."""
    shape = v.type.shape
    if not shape or shape[0] not in (BATCH, 1):
        raise TargetError(f"{where}: %{v.name} {v.type} has no batch axis that could stream frame by frame")
    return shape[1:]


def _extents(shape: tuple[int, ...], order: Array) -> tuple[int, int, int]:
    extents, dense = canonical(shape)
    return extents if np.array_equal(order, dense) else (1, 1, int(prod(shape)))


def _zero_point(v: Value) -> int:
    return v.type.quant.zero_point if v.type.quant is not None else 0


def _transposed(o: Op) -> Array:
    """For every dense index of a transposition's operand, the dense index in its result."""
    perm = o.ints_attr("perm")
    shape = frame_shape(o.operands[0], str(o))
    if perm[0] != 0:
        raise TargetError(f"{o}: it moves the batch axis")
    moved = np.arange(prod(shape)).reshape(shape).transpose([p - 1 for p in perm[1:]]).reshape(-1)
    inverse = np.empty_like(moved)
    inverse[moved] = np.arange(moved.size)
    return inverse


def _input_orders(graph: Graph) -> dict[str, Array]:
    """For each input the order in which its first reader wants it, looking through reshapes and transpositions."""
    wanted: dict[str, Array] = {}
    for o in reversed(graph.ops):
        if o.kind == "constant":
            continue
        for v in o.operands:
            if o.kind == "reshape":
                order = wanted.get(o.result.name, canonical(o.result.type.shape[1:])[1])
            elif o.kind == "transpose" and o.ints_attr("perm")[0] == 0:
                inverse = np.argsort(_transposed(o))
                order = inverse[wanted.get(o.result.name, canonical(o.result.type.shape[1:])[1])]
            else:
                order = canonical(v.type.shape[1:])[1]
            wanted[v.name] = order
    return {v.name: wanted.get(v.name, canonical(v.type.shape[1:])[1]) for v in graph.inputs}


Rule = Callable[[_Lowering, Op], None]

_RULES: Final[Mapping[str, Rule]] = {
    "iconv2d": _Lowering.conv,
    "idense": _Lowering.dense,
    "max_pool2d": _Lowering.max_pool,
    "isum_pool2d": _Lowering.sum_pool,
    "ireduce_sum": _Lowering.reduce,
    "reduce_max": _Lowering.reduce,
    "ilinear": _Lowering.linear,
    "imul": _Lowering.product,
    "ilookup": _Lowering.lookup,
    "concat": _Lowering.concat,
    "slice": _Lowering.slice,
    "pad": _Lowering.pad,
    "reshape": _Lowering.reshape,
    "transpose": _Lowering.transpose,
}

OPERATIONS: Final = frozenset(_RULES)
"""The operations that can become hardware."""
