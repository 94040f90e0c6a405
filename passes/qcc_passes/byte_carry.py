"""Carrying real = scale · byte + offset from a graph's input to the weights that can take it in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import Graph, Op, Value, constant, live, op
from qcc_passes.canonical.affine import Affine, affine_of, clamp_of, fold_before, per_channel, weights
from qcc_passes.canonical.engine import Scope, infer

Array = NDArray[np.float64]
_BYTE_MAX: Final = 255.0


@dataclass(frozen=True, slots=True)
class Carried:
    """``value`` holds bytes that stand for ``scale * value + offset``.

    Both arrays are float64 of the value's rank and broadcast against it; their first dimension is 1.
    """

    value: Value
    scale: Array
    offset: Array

    def moved(self, value: Value, move: Callable[[Array], Array]) -> Carried:
        """What ``value``, moved out of this one, stands for."""
        return Carried(value, _compact(move(self.scale)), _compact(move(self.offset)))


def _compact(array: Array) -> Array:
    """``array`` with every axis along which it is constant cut to length 1."""
    for axis in range(array.ndim):
        first = array.take([0], axis)
        if array.shape[axis] > 1 and np.array_equal(array, np.broadcast_to(first, array.shape)):
            array = first
    return array


def carry(graph: Graph, new: Value, start: Carried, first: Sequence[Op], log: logging.Logger) -> Graph:
    """``graph`` with the input ``new``, of bytes, in place of the one of that name.

    ``start`` says what reals the old input held; ``first`` are operations that make ``start.value``
    from ``new``. Movement moves bytes,
    affine steps compose, convolutions and dense layers absorb what has been composed; what else reads
    the reals gets them back by a ``map``. Raises PassError where a graph output would become bytes.
    """
    return _Carrier(graph, log).run(new, start, first)


class _Carrier:
    def __init__(self, graph: Graph, log: logging.Logger) -> None:
        self._graph = graph
        self._log = log
        self._scope = Scope(graph, log)
        self._ops: list[Op] = []
        self._carried: dict[str, Carried] = {}
        self._reals: dict[str, Value] = {}
        self._padded: dict[tuple[object, ...], Value] = {}

    def run(self, new: Value, start: Carried, first: Sequence[Op]) -> Graph:
        self._ops += first
        self._carried[new.name] = start
        for o in self._graph.ops:
            if any(v.name in self._carried for v in o.operands):
                self._replace(o)
            else:
                self._ops.append(o)
        for v in self._graph.outputs:
            if v.name in self._carried:
                raise PassError(
                    f"output %{v.name} only moves the input, so it would become bytes; take it off the model"
                )
        inputs = tuple(new if v.name == new.name else v for v in self._graph.inputs)
        return replace(self._graph, inputs=inputs, ops=live(self._ops, self._graph.outputs))

    def _replace(self, o: Op) -> None:
        sources = [self._carried.get(v.name) for v in o.operands]
        known = [c for c in sources if c is not None]
        if len(known) == len(sources) and o.kind in _MOVES:
            moved = _MOVES[o.kind](o, known)
            if moved is not None:
                self._ops.append(replace(moved.op, operands=tuple(c.value for c in known)))
                self._carried[o.result.name] = moved.carried
                return
        if self._compose(o) or self._absorb(o, sources[0]):
            return
        operands = tuple(self._real(v, o) for v in o.operands)
        self._ops.append(replace(o, operands=operands))

    def _compose(self, o: Op) -> bool:
        """Take in an affine step without emitting anything."""
        step = None if clamp_of(o) else affine_of(o, self._scope)
        source = None if step is None else self._carried.get(step.x.name)
        if step is None or source is None:
            return False
        rank = o.result.type.rank
        a, t = (v.reshape((1,) * (rank - v.ndim) + v.shape) for v in (step.scale, step.offset))
        if a.shape[0] != 1 or t.shape[0] != 1:
            return False
        scale, offset = source.scale * a, source.offset * a + t
        self._carried[o.result.name] = Carried(source.value, _compact(scale), _compact(offset))
        return True

    def _absorb(self, o: Op, source: Carried | None) -> bool:
        """Fold into the weights of a convolution or a dense layer; the padding becomes explicit."""
        if o.kind not in ("conv2d", "dense") or source is None or weights(o, self._scope) is None:
            return False
        rank = source.value.type.rank
        axis = 1 if o.kind == "conv2d" else rank - 1
        a, t = (per_channel(v, rank, axis, source.value.type.shape[axis]) for v in (source.scale, source.offset))
        if a is None or t is None or any(v.name in self._carried for v in o.operands[1:]):
            return False
        x, attrs = source.value, dict(o.attrs)
        if o.kind == "conv2d" and any(o.ints_attr("pads")) and np.any(t):
            if not np.all(a):
                return False
            x = self._pad(x, o, -t / a)
            attrs["pads"] = (0, 0, 0, 0)
        shape = tuple(-1 if i == axis else 1 for i in range(rank))
        step = Affine(x, a.reshape(shape), t.reshape(shape))
        folded = fold_before(op(o.kind, (x, *o.operands[1:]), o.results, **attrs), step, self._scope)
        self._ops += folded or ()
        return folded is not None

    def _pad(self, x: Value, o: Op, zeros: Array) -> Value:
        """``x`` padded as ``o`` pads, with the bytes nearest to ``zeros`` [C], which stand for zero."""
        nearest = np.clip(np.rint(zeros), 0.0, _BYTE_MAX)
        worst = float(np.abs(nearest - zeros).max())
        if worst > 0.5:
            self._log.warning("%s: no byte stands for zero; its padding is off by %.1f bytes", o, worst)
        top, left, bottom, right = o.ints_attr("pads")
        pads = (0, 0, top, left, 0, 0, bottom, right)
        values = tuple(map(float, nearest))
        values = values[:1] if len(set(values)) == 1 else values
        key = (x.name, pads, values)
        if key not in self._padded:
            padded = infer("pad", (x,), self._scope.fresh(f"{x.name}.padded"), pads=pads, values=values)
            self._ops.append(padded)
            self._padded[key] = padded.result
        return self._padded[key]

    def _real(self, v: Value, o: Op) -> Value:
        """The reals that ``v`` held before, for an operation that cannot work on bytes."""
        source = self._carried.get(v.name)
        if source is None:
            return v
        if v.name not in self._reals:
            value = source.value
            rank, axis = value.type.rank, min(1, value.type.rank - 1)
            columns = [per_channel(p, rank, axis, value.type.shape[axis]) for p in (source.scale, source.offset)]
            if any(c is None for c in columns):
                raise PassError(
                    f"{o} cannot read bytes, and the normalization before it varies along another axis than the "
                    f"channels of %{v.name}; give one mean and std for all channels, or leave byte-input out"
                )
            self._log.info("%s cannot take the normalization in: a table restores %%%s for it", o, v.name)
            shape = (-1,) + (1,) * (rank - 1 - axis)
            params = [
                constant(self._scope.fresh(f"{v.name}.{what}"), c.reshape(shape).astype(np.float32))
                for what, c in zip(("scale", "offset"), columns, strict=True)
                if c is not None
            ]
            operands = (value, *(p.result for p in params))
            restored = infer("map", operands, self._scope.fresh(f"{v.name}.real"), fn="add(mul(x, p0), p1)")
            self._ops += [*params, restored]
            self._reals[v.name] = restored.result
        return self._reals[v.name]


@dataclass(frozen=True, slots=True)
class _Moved:
    op: Op
    carried: Carried


_Move = Callable[[Op, Sequence[Carried]], _Moved | None]


def _transpose(o: Op, sources: Sequence[Carried]) -> _Moved | None:
    return _Moved(o, sources[0].moved(o.result, lambda a: a.transpose(o.ints_attr("perm"))))


def _reshape(o: Op, sources: Sequence[Carried]) -> _Moved | None:
    old, new = sources[0].value.type.shape, o.ints_attr("shape")
    if not new or old[0] != new[0]:
        return None
    return _Moved(o, sources[0].moved(o.result, lambda a: np.broadcast_to(a, (1, *old[1:])).reshape(1, *new[1:])))


def _select(o: Op, sources: Sequence[Carried]) -> _Moved | None:
    axis = o.int_attr("axis")
    if o.kind == "gather":
        indices = list(o.ints_attr("indices"))
    else:
        indices = list(range(o.int_attr("start"), o.int_attr("stop"), o.int_attr("step")))
    return _Moved(o, sources[0].moved(o.result, lambda a: a if a.shape[axis] == 1 else a.take(indices, axis)))


def _concat(o: Op, sources: Sequence[Carried]) -> _Moved | None:
    axis = o.int_attr("axis")
    if axis == 0:
        return None

    def joined(arrays: Sequence[Array]) -> Array:
        full = [np.broadcast_to(a, (1, *c.value.type.shape[1:])) for a, c in zip(arrays, sources, strict=True)]
        return _compact(np.concatenate(full, axis))

    return _Moved(o, Carried(o.result, joined([c.scale for c in sources]), joined([c.offset for c in sources])))


def _pad(o: Op, sources: Sequence[Carried]) -> _Moved | None:
    """Padding with reals → with the bytes that stand for them, where some do exactly."""
    (source,) = sources
    rank, pads = o.result.type.rank, o.ints_attr("pads")
    padded = [a for a in range(rank) if pads[a] or pads[a + rank]]
    if any(p.shape[a] > 1 for p in (source.scale, source.offset) for a in padded) or rank < 2:
        return None
    channels = source.value.type.shape[1]
    a, t = (per_channel(p, rank, 1, channels) for p in (source.scale, source.offset))
    if a is None or t is None or not np.all(a) or 1 in padded:
        return None
    values = (np.array(o.floats_attr("values")) - t) / a
    nearest = np.clip(np.rint(values), 0.0, _BYTE_MAX)
    if np.abs(nearest - values).max() > 0.5:
        return None
    codes = tuple(map(float, nearest))
    codes = codes[:1] if len(set(codes)) == 1 else codes
    return _Moved(op("pad", o.operands, o.results, pads=pads, values=codes), replace(source, value=o.result))


def _maximum(o: Op, sources: Sequence[Carried]) -> _Moved | None:
    """Maxima of bytes stand for maxima of reals, where the same rising function maps one to the other."""
    (source,) = sources
    axes = (2, 3) if o.kind == "max_pool2d" else o.ints_attr("axes")
    arrays = (source.scale, source.offset)
    if not np.all(source.scale > 0) or any(p.shape[a] > 1 for p in arrays for a in axes):
        return None
    drop = () if o.kind == "max_pool2d" or o.bool_attr("keepdims") else axes
    return _Moved(o, source.moved(o.result, lambda p: p.squeeze(drop) if drop else p))


_MOVES: Final[Mapping[str, _Move]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "slice": _select,
    "gather": _select,
    "concat": _concat,
    "pad": _pad,
    "max_pool2d": _maximum,
    "reduce_max": _maximum,
}
