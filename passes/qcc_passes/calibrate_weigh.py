"""Distributions of activations in which each element counts by what its error does to the outputs.

A small error d of element e changes the outputs by J_e d, so a grid should make the sum of
|J_e|^2 d_e^2 small, not that of d_e^2: elements that a later Relu stops, or that saturate, may be
clipped for free. One backward pass of a random cotangent u with E[u u^T] = I gives g = J^T u, whose
squares have the expectation |J_e|^2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op, Value
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.calibrate_probe import sampling_step
from qcc_passes.histogram import Histogram
from qcc_passes.vjp import unclamped, vjp

Array = NDArray[Any]

_BUDGET: Final = 128 << 20
"""Bytes of activations that are held at once."""

_SAMPLES_PER_VALUE: Final = 1 << 19


class Backward:
    """Reverse-mode differentiation of a FLOAT graph; the costly convolutions run in onnxruntime."""

    def __init__(self, graph: Graph, threads: int) -> None:
        self._graph = graph
        self._threads = threads
        self._constants = {o.result.name: o.array for o in graph.ops if o.kind == "constant"}
        self._convs = {o.result.name: m for o in graph.ops if (m := self._reversed(o)) is not None}

    def cotangents(self, values: Mapping[str, Array], seeds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """The cotangent of each value that the seeded ones depend on, last values first.

        Nothing is given for values that also reach a seed through an operation without a derivative.
        """
        grads = dict(seeds)
        broken: set[str] = set()
        for o in reversed(self._graph.ops):
            name = o.result.name
            if o.kind == "constant" or (name not in grads and name not in broken):
                continue
            operands = [v.name for v in o.operands if v.name not in self._constants and v.type.dtype == "f32"]
            if name in broken:
                broken.update(operands)
                continue
            grad = grads.pop(name)
            yield name, grad
            try:
                parts = self._vjp(o, values, grad)
            except PassError:
                broken.update(operands)
                continue
            for v, part in zip(o.operands, parts, strict=True):
                if part is not None and v.name in operands:
                    grads[v.name] = grads[v.name] + part if v.name in grads else part
        yield from ((v.name, grads[v.name]) for v in self._graph.inputs if v.name in grads and v.name not in broken)

    def _vjp(self, o: Op, values: Mapping[str, Array], grad: Array) -> list[Array | None]:
        """The operands' cotangents from that of the result. Raises PassError where there is no derivative."""
        if (reverse := self._convs.get(o.result.name)) is not None:
            grad = unclamped(o, values[o.result.name], grad)
            (dx,) = reverse.run({"grad": np.ascontiguousarray(grad)}).values()
            return [dx, None, None, *([grad] if len(o.operands) == 4 else [])]
        operands = [self._constants[v.name] if v.name in self._constants else values[v.name] for v in o.operands]
        return list(vjp(o, operands, values[o.result.name], grad))

    def _reversed(self, o: Op) -> OrtModel | None:
        """A convolution's adjoint for x: that of the dilated cotangent with flipped weights.

        None for other operations, and where more is padded than the kernel reaches.
        """
        if o.kind != "conv2d" or o.operands[1].name not in self._constants:
            return None
        w = self._constants[o.operands[1].name]
        groups, strides, dilations = o.int_attr("groups"), o.ints_attr("strides"), o.ints_attr("dilations")
        size, kernel = o.operands[0].type.shape[2:], w.shape[2:]
        before = [d * (k - 1) - p for d, k, p in zip(dilations, kernel, o.ints_attr("pads"), strict=False)]
        dilated = [(n - 1) * s + 1 for n, s in zip(o.result.type.shape[2:], strides, strict=True)]
        after = [
            n + d * (k - 1) - g - b for n, d, k, g, b in zip(size, dilations, kernel, dilated, before, strict=True)
        ]
        if min(*before, *after) < 0:
            return None
        b = GraphBuilder("adjoint")
        grad = b.input("grad", (BATCH, *o.result.type.shape[1:]))
        if strides != (1, 1):
            grad = b.op("dilate2d", [grad], factors=strides)
        swapped = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)[..., ::-1, ::-1]
        kernels = b.constant(swapped.reshape(-1, *swapped.shape[2:]))
        bias = b.constant(np.zeros(kernels.type.shape[0], np.float32))
        pads = (*before, *after)
        dx = b.op("conv2d", [grad, kernels, bias], groups=groups, strides=(1, 1), dilations=dilations, pads=pads)
        return OrtModel(export_onnx(b.graph([dx])), threads=self._threads)


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
    fixed = [v.type.shape[0] for v in graph.inputs if v.type.shape and v.type.shape[0] != BATCH]
    bytes_per_sample = sum(4 * math.prod(map(abs, o.result.type.shape)) for o in graph.ops if o.kind != "constant")
    size = fixed[0] if fixed else max(1, _BUDGET // max(bytes_per_sample, 1))
    count = min(max(images, size), data.samples)
    if fixed:
        count -= count % fixed[0]
    return size, np.linspace(0, data.samples - 1, count).astype(np.int64)


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return rng.integers(0, 2, shape).astype(np.float32) * 2 - 1


def _count(histogram: Histogram, value: Array, grad: Array, samples: int) -> None:
    """Add about ``samples`` elements per image of ``value``, weighted by the squares of ``grad``."""
    step = sampling_step(value.shape, samples)
    some, weights = (a.reshape(len(a), -1)[:, ::step] for a in (value, grad))
    histogram.add(some, np.square(weights, dtype=np.float64))
