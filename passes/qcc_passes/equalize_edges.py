"""Activations between convolutions, whose channels can be changed at no cost, and the extremes of these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.build import infer
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, fresh_name, live
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.canonical.affine import weights
from qcc_passes.canonical.engine import Scope
from qcc_passes.channel_rules import is_depthwise
from qcc_passes.samples import fixed_batch, samples_in

Array = NDArray[np.float64]

_BATCH: Final = 16


@dataclass(frozen=True, slots=True)
class Edge:
    """``producer``'s result, which nothing but convolutions reads, through max pools and concatenations at most.

    ``readers`` are these, each with the first of its input channels that the producer makes; ``weights`` are the
    readers', and ``ways`` the results of what lies between.
    """

    producer: Op
    readers: tuple[tuple[Op, int], ...]
    weights: tuple[Array, ...]
    ways: tuple[Value, ...] = ()

    @property
    def value(self) -> Value:
        return self.producer.result

    @property
    def ceiling(self) -> float:
        return self.producer.float_attr("hi", math.inf)

    @property
    def clamped(self) -> bool:
        """Whether nothing is below zero."""
        return self.producer.float_attr("lo", -math.inf) == 0

    @property
    def movable(self) -> bool:
        """Whether a constant may be added to channels: padding with zeros would have to become another one."""
        return all(not any(o.ints_attr("pads")) for o, _ in self.readers)

    @property
    def depthwise(self) -> bool:
        """Whether every reader keeps the channels apart."""
        return all(is_depthwise(o) for o, _ in self.readers)


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
            readers, ways = found
            known = tuple(w for reader, _ in readers if (w := _weights(reader, scope)) is not None)
            edges.append(Edge(o, readers, known, ways))
    return edges


def _weights(o: Op, scope: Scope) -> Array | None:
    known = weights(o, scope)
    return None if known is None else known[0]


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
