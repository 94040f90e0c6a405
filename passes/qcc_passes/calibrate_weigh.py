"""Distributions of activations in which each element counts by what its error does to the outputs.

A small error d of element e changes the outputs by J_e d, so a grid should make the sum of
|J_e|^2 d_e^2 small, not that of d_e^2: elements that a later Relu stops, or that saturate, may be
clipped for free. One backward pass of a random cotangent u with E[u u^T] = I gives g = J^T u, whose
squares have the expectation |J_e|^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Value
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.backward import Backward
from qcc_passes.calibrate_probe import sampling_step
from qcc_passes.histogram import Histogram
from qcc_passes.samples import elements, fixed_batch

Array = NDArray[Any]

_BUDGET: Final = 128 << 20
"""Bytes of activations that are held at once."""

_SAMPLES_PER_VALUE: Final = 1 << 19


def weigh(graph: Graph, images: int, seen: Mapping[str, Histogram], ctx: PassContext) -> dict[str, Histogram]:
    """Weighted histograms of the values of a FLOAT ``graph``, on ``images`` samples spread over the calibration data.

    ``seen`` are the plain ones, which give exact extremes and the outputs' magnitudes: errors at
    several outputs count relative to those. Values without a derivative to any output have no entry.
    """
    data = ctx.facts.get(CalibrationData)
    heads = _heads(graph)
    if not heads:
        return {}
    taken = {v.name: v for v in (*graph.inputs, *(o.result for o in graph.ops if o.kind != "constant"))}
    kept = [name for name, v in taken.items() if v.type.dtype == "f32"]
    forward = OrtModel(export_onnx(graph, keep=kept), threads=ctx.threads)
    backward = Backward(graph, ctx.threads)
    rms = {name: math.sqrt(seen[name].mean_square) or 1.0 for name in heads}
    spread = {name: rms[name] if len(heads) > 1 else 1.0 for name in heads}
    weighted = {name: Histogram() for name in kept}
    rng = ctx.rng()
    size, chosen = _batches(graph, data, images)
    samples = _SAMPLES_PER_VALUE // max(len(chosen), 1)
    for start in range(0, len(chosen), size):
        rows = chosen[start : start + size]
        feeds = {v.name: np.ascontiguousarray(data.arrays[v.name][rows], v.type.numpy) for v in graph.inputs}
        values = {**feeds, **forward.run(feeds)}
        seeds = {n: _signs(rng, values[n].shape) / np.float32(spread[n]) for n in heads}
        for name, grad in backward.cotangents(values, seeds):
            _count(weighted[name], values[name], grad, samples)
        ctx.progress("weigh", min(start + size, len(chosen)), len(chosen))
    for name, histogram in weighted.items():
        histogram.widen(seen[name].low, seen[name].high)
    return {name: histogram for name, histogram in weighted.items() if histogram.counts.any()}


def _heads(graph: Graph) -> list[str]:
    """The real values whose errors are to be small: the outputs, and what a softmax or argmax among them reads.

    The derivative of a softmax nearly vanishes where it is sure; errors there count all the same, since
    clipping its arguments is no small step.
    """
    made_by = {o.result.name: o for o in graph.ops}
    ends: list[Value] = []
    for v in graph.outputs:
        kind = made_by[v.name].kind if v.name in made_by else "input"
        if kind in ("softmax", "argmax"):
            ends.append(made_by[v.name].operands[0])
        elif kind != "constant":
            ends.append(v)
    return list(dict.fromkeys(v.name for v in ends if v.type.dtype == "f32"))


def _batches(graph: Graph, data: CalibrationData, images: int) -> tuple[int, NDArray[np.int64]]:
    """How many samples to run at once, and the indices of all, in whole batches where the graph's is fixed.

    At least ``images``, and all that fit into the first batch: where tensors are small, few samples
    would hold too few elements to find their range by.
    """
    fixed = fixed_batch(graph)
    size = fixed or max(1, _BUDGET // max(4 * elements(graph), 1))
    count = min(max(images, size), data.samples)
    if fixed is not None:
        count -= count % fixed
    return size, np.linspace(0, data.samples - 1, count).astype(np.int64)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, 2, shape).astype(np.float32) * 2 - 1


def _count(histogram: Histogram, value: Array, grad: Array, samples: int) -> None:
    """Add about ``samples`` elements per image of ``value``, weighted by the squares of ``grad``."""
    step = sampling_step(value.shape, samples)
    some, weights = (a.reshape(len(a), -1)[:, ::step] for a in (value, grad))
    histogram.add(some, np.square(weights, dtype=np.float64))
