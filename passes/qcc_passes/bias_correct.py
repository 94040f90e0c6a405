"""Bias correction: moving every layer's channel means back to where fp32 has them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Op, Stage, Value, constant, fresh_name, rewrite
from qcc.ir.types import BATCH
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.interp import evaluate_op
from qcc.verify.windows import Window
from qcc_passes.facts import BiasCorrections, ChannelMeans
from qcc_passes.layers import layers

Array = NDArray[Any]

_PART: Final = 48 << 20
"""Bytes of the largest value that are held as reals at once; all else waits as codes."""


class BiasCorrect(Pass):
    """Shift each layer's bias so that its quantized channel means meet those of fp32, layer after layer.

    What rounding does to the mean of a layer's output, E[dW x] and the errors from before it, is a
    constant per channel, which the bias takes back for nothing (Nagel et al., arXiv:1906.04721).
    Each layer sees what the corrected ones before it compute. The shift is the mean over images
    with ``trim`` of them cut off at either end, which single odd images cannot move; it is kept
    only where the squared error of the output falls on images held out from it.
    """

    name: ClassVar[str] = "bias-correct"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[tuple[type, ...]] = (CalibrationData, ChannelMeans)
    gives: ClassVar[tuple[type, ...]] = (BiasCorrections,)

    samples: int = Field(default=128, ge=2, description="calibration samples to use")
    trim: float = Field(default=0.2, ge=0, lt=0.5, description="share of the samples left out at either end")
    held_out: float = Field(default=0.25, gt=0, lt=1, description="share of the samples that only judges")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with corrected biases, each a constant of its layer's own."""
        data, means = ctx.facts.get(CalibrationData), ctx.facts.get(ChannelMeans)
        size = _images_per_part(graph)
        count = min(self.samples, data.samples, means.images)
        if (fixed := _fixed_batch(graph)) is not None:
            count -= count % fixed
        names = [layer.name for layer in layers(graph) if layer.name in means.by_value]
        walk = _Walk(
            graph, [{k: a[i : min(i + size, count)] for k, a in data.arrays.items()} for i in range(0, count, size)]
        )
        biases: dict[str, Array] = {}
        for o in walk.ops() if count > 1 else ():
            if o.result.name in names:
                exact, found = means.by_value[o.result.name][:count], walk.channel_means(o)
                # A layer whose first axis is not the images (a fixed batch may be folded into others) has none to trim.
                shift = self._shift(exact - found) if exact.shape == found.shape else None
                if shift is not None:
                    biases[o.result.name] = walk.arrays[o.operands[2].name] + shift.astype(np.float32)
                ctx.progress(self.name, names.index(o.result.name) + 1, len(names))
            walk.compute(o, biases.get(o.result.name))
        refused = tuple(n for n in names if n not in biases)
        ctx.log.info("%s: %d layers corrected, %d left as they were", self.name, len(biases), len(refused))
        ctx.facts.put(BiasCorrections(tuple(biases), refused))
        return _with_biases(graph, biases)

    def _shift(self, errors: Array) -> Array | None:
        """The correction per channel from errors [images, C], or None where it does not help held-out images."""
        errors = errors.astype(np.float64)  # whose squares cannot overflow
        held = max(1, round(len(errors) * self.held_out))
        fit, judge = errors[:-held], errors[-held:]
        trial = self._trimmed(fit) if len(fit) else errors.mean(axis=0)
        if np.square(judge - trial).sum() >= np.square(judge).sum():
            return None
        return self._trimmed(errors)

    def _trimmed(self, errors: Array) -> Array:
        cut = int(len(errors) * self.trim)
        mean: Array = np.sort(errors, axis=0)[cut : len(errors) - cut].mean(axis=0, dtype=np.float64)
        return mean


def _fixed_batch(graph: Graph) -> int | None:
    """The images per inference that the graph's shapes demand; None where any batch will do."""
    return next((v.type.shape[0] for v in graph.inputs if v.type.shape and v.type.shape[0] != BATCH), None)


def _images_per_part(graph: Graph) -> int:
    """How many images to compute at once: what a fixed batch demands, or what fits into memory."""
    if (fixed := _fixed_batch(graph)) is not None:
        return fixed
    largest = max((math.prod(map(abs, o.result.type.shape)) for o in graph.ops if o.kind != "constant"), default=1)
    return max(1, _PART // (4 * largest))


@dataclass(slots=True)
class _Walk:
    """The values of a QUANTIZED graph on some images, in parts, as codes; each is dropped after its last reader."""

    graph: Graph
    inputs: list[dict[str, Array]]
    arrays: dict[str, Array] = field(default_factory=dict)
    _stored: dict[str, list[Array]] = field(default_factory=dict)

    def ops(self) -> Iterator[Op]:
        """The operations in order, constants apart; the caller computes each before it asks for the next."""
        for v in self.graph.inputs:
            self._stored[v.name] = [_codes(v, part[v.name].astype(v.type.numpy)) for part in self.inputs]
        last = {v.name: i for i, o in enumerate(self.graph.ops) for v in o.operands}
        for index, o in enumerate(self.graph.ops):
            if o.kind == "constant":
                quant = o.result.type.quant
                self.arrays[o.result.name] = o.array if quant is None else quant.dequantize(quant.quantize(o.array))
                continue
            yield o
            for v in o.operands:
                if last[v.name] == index:
                    self._stored.pop(v.name, None)

    def compute(self, o: Op, bias: Array | None) -> None:
        """Store the result of ``o``, with ``bias`` in place of its own."""
        parts = []
        for operands in self._parts(o):
            if bias is not None:
                operands[2] = bias
            parts.append(_codes(o.result, evaluate_op(o, operands)))
        self._stored[o.result.name] = parts

    def channel_means(self, o: Op) -> Array:
        """Means [images, C] of what a layer computes before its clamp, residual included.

        A mean of sums of products is a sum of products with means: only the windows' means of the
        input are needed, not the layer's output.
        """
        return np.concatenate([_channel_means(o, operands) for operands in self._parts(o)])

    def _parts(self, o: Op) -> Iterator[list[Array]]:
        """The operands of ``o`` as reals, some images at a time."""
        for index in range(len(self.inputs)):
            yield [
                self.arrays[v.name] if v.name in self.arrays else _reals(v, self._stored[v.name][index])
                for v in o.operands
            ]


def _channel_means(o: Op, operands: list[Array]) -> Array:
    x, w, b, *residual = operands
    means: Array
    if o.kind == "dense":
        means = x.reshape(len(x), -1, x.shape[-1]).mean(axis=1) @ w.T + b
        for r in residual:
            means += r.reshape(len(r), -1, r.shape[-1]).mean(axis=1)
        return means
    groups = o.int_attr("groups")
    taps = np.empty((*x.shape[:2], *w.shape[2:]), np.float32)
    for i, j, tap in Window.of(o).taps(x):
        taps[:, :, i, j] = tap.mean(axis=(2, 3))
    rows = taps.reshape(len(x), groups, -1)
    kernels = w.reshape(groups, len(w) // groups, -1)
    means = np.einsum("ngk,gok->ngo", rows, kernels).reshape(len(x), -1) + b
    for r in residual:
        means += r.mean(axis=(2, 3))
    return means


def _codes(value: Value, real: Array) -> Array:
    quant = value.type.quant
    return real if quant is None or quant.bits > 8 else quant.quantize(real)


def _reals(value: Value, stored: Array) -> Array:
    quant = value.type.quant
    return stored if quant is None or quant.bits > 8 else quant.dequantize(stored)


def _with_biases(graph: Graph, biases: dict[str, Array]) -> Graph:
    """Layers with new bias constants; those that they shared stay as they were for others."""
    taken = {v.name for o in graph.ops for v in o.results} | {v.name for v in graph.inputs}

    def correct(o: Op) -> list[Op] | None:
        if o.result.name not in biases:
            return None
        name = fresh_name(f"{o.result.name}.bias", taken)
        taken.add(name)
        bias = constant(name, biases[o.result.name])
        operands = (*o.operands[:2], bias.result, *o.operands[3:])
        return [bias, Op(o.kind, operands, o.results, o.attrs)]

    return rewrite(graph, correct)
