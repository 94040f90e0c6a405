"""How many calibration samples a measurement runs on, and how many of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.facts import CalibrationData

_ELEMENTS: Final = 1 << 28
"""Activations, over all samples, that a measurement costing several forward passes computes by default."""


def fixed_batch(graph: Graph) -> int | None:
    """The samples per inference that the graph's shapes demand; None where any batch will do."""
    return next((v.type.shape[0] for v in graph.inputs if v.type.shape and v.type.shape[0] != BATCH), None)


def samples_in(batch: Mapping[str, NDArray[Any]]) -> int:
    """How many samples a batch of inputs holds."""
    return len(next(iter(batch.values())))


def elements(graph: Graph) -> int:
    """Activations that one inference computes, per sample where the batch is free."""
    return sum(math.prod(map(abs, o.result.type.shape)) for o in graph.ops if o.kind != "constant")


def affordable(graph: Graph, least: int = 32) -> int:
    """How many samples keep a measurement short: more where a network is small, so that its few values count."""
    per_sample = elements(graph) // (fixed_batch(graph) or 1)
    return max(least, _ELEMENTS // max(per_sample, 1))


def parts(graph: Graph, data: CalibrationData, samples: int, budget: int, live: int) -> list[dict[str, NDArray[Any]]]:
    """At most ``samples`` samples spread over ``data``, in parts to be run at once, as the inputs' element types.

    Parts are what a fixed batch demands, samples that do not fill one being left out; else as many as hold
    ``budget`` bytes when each sample takes ``live``.
    """
    data.check(graph)
    fixed = fixed_batch(graph)
    count = min(samples, data.samples)
    if fixed is not None:
        count -= count % fixed
    rows = [i * data.samples // count for i in range(count)] if count else []
    size = fixed or max(1, budget // max(live, 1))
    arrays = {v.name: (data.arrays[v.name], v.type.numpy) for v in graph.inputs}
    return [
        {name: array[rows[i : i + size]].astype(dtype) for name, (array, dtype) in arrays.items()}
        for i in range(0, count, size)
    ]
