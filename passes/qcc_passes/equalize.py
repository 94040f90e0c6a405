"""Equalize the channels of activations between convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.frontend.export import export_onnx
from qcc.ir.build import infer
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, fresh_name, live, op
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.layers import EQUALIZED
from qcc.verify.ort import OrtModel
from qcc_passes.canonical.affine import relinear, weights
from qcc_passes.canonical.engine import Scope
from qcc_passes.samples import fixed_batch, samples_in

Array = NDArray[np.float64]

_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Edge:
    """``producer``'s result, which nothing but convolutions reads, through max pools and concatenations at most.

    ``readers`` are these, each with the first of its input channels that the producer makes; ``ways`` are
    the results of what lies between.
    """

    producer: Op
    readers: tuple[tuple[Op, int], ...]
    ways: tuple[Value, ...] = ()

    @property
    def value(self) -> Value:
        return self.producer.result

    @property
    def ceiling(self) -> float:
        return self.producer.float_attr("hi", math.inf)

    @property
    def depthwise(self) -> bool:
        """Whether every reader keeps the channels apart."""
        return all(is_depthwise(o) for o, _ in self.readers)


class Equalize(Pass):
    """Scale channels between convolutions, so that all use more of their common grid.

    Channel c of the producer (a convolution without residual) is multiplied by s_c ≥ 1, and the
    weights of its readers are divided by it, where s_c = (r / r_c)^strength brings the channel's extremes
    r_c on the first ``samples`` calibration samples towards those of the widest channel, r; ``limit``
    bounds it. Where only depthwise convolutions read it, the strength is 1, since each channel's
    weights have a grid of their own; else ``strength`` shares the unevenness between activations and
    weights (Nagel et al., arXiv:1906.04721; Xiao et al., arXiv:2211.10438). 0 leaves those edges alone.

    A linear result or a Relu keeps the function exactly. An upper clamp (Relu6) cannot follow: it is
    dropped where no sample reached it, and kept otherwise, so that the function changes only where a
    channel goes beyond all it reached in calibration, which its grid would cut off anyway.

    Run it before ``calibrate``. Raises ConfigError where the data do not fit the graph.
    """

    name: ClassVar[str] = "equalize"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)

    samples: int = Field(default=32, gt=0)
    strength: float = Field(default=0.5, ge=0, le=1)
    limit: float = Field(default=16.0, ge=1)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        scope = Scope(graph, ctx.log)
        edges = [e for e in find_edges(graph, scope) if e.depthwise or self.strength]
        if not edges:
            return graph
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        extremes = channel_extremes(graph, edges, data, self.samples)
        scales: dict[str, Array] = {}
        for edge in edges:
            low, high = extremes[edge.value.name]
            strength = 1.0 if edge.depthwise else self.strength
            scales[edge.value.name] = channel_scales(low, high, self.limit, strength)
            ctx.log.debug("%%%s equalized: widest factor %.3g", edge.value.name, scales[edge.value.name].max())
        idle = {e.value.name for e in edges if extremes[e.value.name][1].max() < e.ceiling}
        return _scaled(graph, edges, scales, idle, scope)


def find_edges(graph: Graph, scope: Scope) -> list[Edge]:
    """The activations of a FLOAT ``graph`` that can be equalized, in order."""
    edges: list[Edge] = []
    for o in graph.ops:
        found = _readers(o.result, scope) if o.kind == "conv2d" else None
        if not found:
            continue
        if len(o.operands) == 4 or weights(o, scope) is None:
            scope.keep(o, "not equalized: it adds a residual, or its weights vary")
        elif o.float_attr("lo", 0.0) != 0 or o.float_attr("hi", 1.0) <= 0:
            scope.keep(o, "not equalized: its clamp does not begin at zero")
        else:
            edges.append(Edge(o, *found))
    return edges


def _readers(value: Value, scope: Scope) -> tuple[tuple[tuple[Op, int], ...], tuple[Value, ...]] | None:
    """The convolutions that read ``value``, with its first channel there, and the values between; None for others."""
    found: list[tuple[Op, int]] = []
    between: list[Value] = []
    ways = [(value, 0)]
    while ways:
        seen, offset = ways.pop()
        if seen != value:
            between.append(seen)
        users = scope.users(seen)
        if scope.is_output(seen) or not users:
            return None
        for o in users:
            places = [i for i, v in enumerate(o.operands) if v.name == seen.name]
            if o.kind == "conv2d" and places == [0] and weights(o, scope) is not None:
                if not is_depthwise(o) and o.int_attr("groups") > 1:
                    return None
                found.append((o, offset))
            elif o.kind == "max_pool2d":
                ways.append((o.result, offset))
            elif o.kind == "concat" and o.int_attr("axis") == 1 and len(places) == 1:
                ways.append((o.result, offset + sum(v.type.shape[1] for v in o.operands[: places[0]])))
            else:
                return None
    return tuple(found), tuple(between)


def is_depthwise(o: Op) -> bool:
    """Whether a convolution's every input channel is a group of its own."""
    return o.operands[1].type.shape[1] == 1 and o.int_attr("groups") == o.operands[0].type.shape[1]


def channel_extremes(
    graph: Graph, edges: Sequence[Edge], data: CalibrationData, samples: int
) -> dict[str, tuple[Array, Array]]:
    """Lowest and highest value [C] of each edge on the first ``samples`` samples, by value name."""
    probe = _probe(graph, edges)
    model = OrtModel(export_onnx(probe))
    fixed = fixed_batch(graph)
    size = fixed or _BATCH
    lows: list[list[NDArray[Any]]] = []
    highs: list[list[NDArray[Any]]] = []
    for batch in data.batches(size, max(samples, size)):
        if samples_in(batch) < size and fixed is not None:
            break
        feeds = {v.name: np.ascontiguousarray(batch[v.name], v.type.numpy) for v in graph.inputs}
        seen = model.run(feeds)
        values = [seen[v.name] for v in probe.outputs]
        highs.append([v.max(axis=0) for v in values[0::2]])
        lows.append([-v.max(axis=0) for v in values[1::2]])
    found = {}
    for i, edge in enumerate(edges):
        low, high = np.min([row[i] for row in lows], axis=0), np.max([row[i] for row in highs], axis=0)
        found[edge.value.name] = (low.astype(np.float64), high.astype(np.float64))
    return found


def _probe(graph: Graph, edges: Sequence[Edge]) -> Graph:
    """A graph whose outputs are, edge by edge, the maxima [N, C] of the value and of its negation."""
    taken = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops}
    ops = list(graph.ops)
    outputs: list[Value] = []

    def append(kind: str, x: Value, stem: str, **attrs: Attr) -> Value:
        name = fresh_name(stem, taken)
        taken.add(name)
        ops.append(infer(Stage.FLOAT, kind, [x], name, attrs))
        return ops[-1].result

    for edge in edges:
        name = edge.value.name
        negated = append("map", edge.value, f"{name}.negated", fn="neg(x)")
        for x, what in ((edge.value, "high"), (negated, "low")):
            outputs.append(append("reduce_max", x, f"{name}.{what}", axes=(2, 3), keepdims=False))
    return replace(graph, ops=live(ops, outputs), outputs=tuple(outputs))


def channel_scales(low: Array, high: Array, limit: float, strength: float = 1.0) -> Array:
    """The factor [C] ≥ 1 that stretches each channel towards the extremes over all channels; 1 for dead ones.

    ``low`` and ``high`` [C] are the extremes of each channel. ``strength`` is the power of the factor
    that would reach them; none exceeds ``limit``.
    """
    factors = np.full(high.shape, np.inf)
    for reach in (np.maximum(high, 0), np.maximum(-low, 0)):
        used = reach > 0
        factors[used] = np.minimum(factors[used], reach.max() / reach[used])
    factors[np.isinf(factors)] = 1
    scales: Array = np.clip(factors**strength, 1, limit)
    return scales


def _scaled(graph: Graph, edges: Sequence[Edge], scales: Mapping[str, Array], idle: Set[str], scope: Scope) -> Graph:
    """``graph`` with the channels of the values in ``scales`` multiplied; ``idle`` lose their upper clamp."""
    divisors: dict[str, Array] = {}
    for edge in edges:
        for reader, first in edge.readers:
            divisor = divisors.setdefault(reader.result.name, np.ones(reader.operands[0].type.shape[1]))
            divisor[first : first + len(scales[edge.value.name])] *= scales[edge.value.name]
    ops: list[Op] = []
    for o in graph.ops:
        before, after = divisors.get(o.result.name), scales.get(o.result.name)
        known = None if before is None and after is None else weights(o, scope)
        if known is None:
            ops.append(o)
            continue
        w, b = known
        if before is not None:
            w = w / (
                np.repeat(before, len(w) // len(before)).reshape(-1, 1, 1, 1) if is_depthwise(o) else _column(before)
            )
        if after is not None:
            w, b = w * after.reshape(-1, 1, 1, 1), b * after
        attrs = {k: a for k, a in o.attrs.items() if k != "hi" or o.result.name not in idle}
        ops += relinear(op(o.kind, o.operands, o.results, **attrs), o.result, w, b, scope)
    return _renamed(replace(graph, ops=live(ops, graph.outputs)), edges)


def _renamed(graph: Graph, edges: Sequence[Edge]) -> Graph:
    """``graph`` in which values that are no longer the model's do not bear its names."""
    taken = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops}
    names: dict[str, str] = {}
    for v in dict.fromkeys(v for e in edges for v in (e.value, *e.ways)):
        names[v.name] = fresh_name(v.name + EQUALIZED, taken)
        taken.add(names[v.name])

    def renamed(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(v, name=names.get(v.name, v.name)) for v in values)

    ops = tuple(replace(o, operands=renamed(o.operands), results=renamed(o.results)) for o in graph.ops)
    return replace(graph, ops=ops)


def _column(factors: Array) -> Array:
    return factors.reshape(1, -1, 1, 1)
