"""A graph that measures another: its outputs are statistics of every activation, small enough to keep.

The statistics are computed by the executor beside the activations, which are freed as usual: what
leaves is a strided sample and the extremes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op, Value
from qcc_passes.samples import fixed_batch

LAYERS: Final = frozenset({"conv2d", "dense"})
"""Operations with weights and a bias."""


@dataclass(frozen=True, slots=True)
class Probe:
    """``graph`` computes the statistics; the tables map values of the probed graph to its outputs.

    ``samples`` [N, k] are elements of the value, ``highs`` its maximum per image, ``lows`` that of its
    negation, absent for values that cannot be negative.
    """

    graph: Graph
    samples: Mapping[str, str]
    highs: Mapping[str, str]
    lows: Mapping[str, str]


def probe(graph: Graph, samples: int) -> Probe:
    """The probe of a FLOAT ``graph`` that takes about ``samples`` elements of every value per image."""
    prober = _Prober(graph, samples)
    for value in graph.inputs:
        prober.observe(value, positive=False)
    for o in graph.ops:
        prober.replay(o)
        if o.kind != "constant" and o.result.type.dtype == "f32":
            prober.observe(o.result, positive=non_negative(o))
    return prober.finish()


def non_negative(o: Op) -> bool:
    """Whether the operation's attributes alone say that nothing it yields is below zero."""
    return o.float_attr("lo", -math.inf) >= 0 or o.kind == "softmax"


class _Prober:
    def __init__(self, graph: Graph, samples: int) -> None:
        self._builder = GraphBuilder(graph.name)
        self._count = samples
        for v in graph.inputs:
            self._builder.input(v.name, v.type.shape, v.type.dtype, v.type.quant)
        # Names that later values will need, so that no statistic takes one.
        self._reserved = {v.name for o in graph.ops for v in o.results}
        self._outputs: list[Value] = []
        self._samples: dict[str, str] = {}
        self._highs: dict[str, str] = {}
        self._lows: dict[str, str] = {}

    def finish(self) -> Probe:
        graph = self._builder.graph(self._outputs, prune=True)
        return Probe(graph, self._samples, self._highs, self._lows)

    def replay(self, o: Op) -> None:
        """Append ``o`` as it is."""
        self._builder.append(o)

    def observe(self, value: Value, *, positive: bool) -> None:
        """Append the statistics of ``value``."""
        name = value.name
        self._samples[name] = self._give(self._sample(value))
        self._highs[name] = self._give(self._max(value, self._name(name, "high")))
        if not positive:
            negated = self._builder.op("map", [value], name=self._name(name, "negated"), fn="neg(x)")
            self._lows[name] = self._give(self._max(negated, self._name(name, "low")))

    def _sample(self, value: Value) -> Value:
        """Every n-th element of each image."""
        shape = value.type.shape
        batch, total = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        name = self._name(value.name, "sample")
        flat = self._builder.op("reshape", [value], name=f"{name}.flat", shape=(batch, total))
        step = sampling_step(shape, self._count)
        return self._builder.op("slice", [flat], name=name, axis=1, start=0, stop=total, step=step)

    def _max(self, value: Value, name: str) -> Value:
        axes = tuple(range(1, value.type.rank))
        return self._builder.op("reduce_max", [value], name=name, axes=axes, keepdims=False) if axes else value

    def _name(self, value: str, what: str) -> str:
        name = f"{value}.{what}"
        while name in self._reserved:
            name += "_"
        return name

    def _give(self, value: Value) -> str:
        if value not in self._outputs:
            self._outputs.append(value)
        return value.name


def sampling_step(shape: Sequence[int], samples: int) -> int:
    """Every how many elements to take about ``samples`` of them, first axis apart.

    It shares no divisor with the last axis, so that all columns of a map occur.
    """
    step = max(1, math.prod(shape[1:]) // samples)
    while step > 1 and math.gcd(step, shape[-1]) > 1:
        step += 1
    return step


def batch_size(graph: Graph, budget: int = 32 << 20) -> int:
    """Images per run: the graph's own batch, or as many as keep the largest activation within ``budget`` bytes."""
    if (fixed := fixed_batch(graph)) is not None:
        return fixed
    values = (o.result.type.shape for o in graph.ops if o.kind != "constant")
    largest = max((4 * math.prod(abs(d) for d in shape) for shape in values), default=1)
    return min(max(1, budget // largest), 64)
