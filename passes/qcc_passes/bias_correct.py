"""Bias correction: moving every layer's channel means back to where fp32 has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Op, Stage, constant, constants
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.facts import BiasCorrections
from qcc_passes.layers import layers, own_biases
from qcc_passes.samples import affordable, elements, parts, samples_in
from qcc_passes.sweep import Step, Sweep

Array = NDArray[Any]

_RUN: Final = 64 << 20
"""Bytes of activations that one run holds."""
_STOPPED: Final = 0.05
"""What an element that the clamp stops counts, against 1 for others."""


class BiasCorrect(Pass):
    """Shift each layer's bias so that its quantized channel means meet those of fp32, layer after layer.

    What rounding does to the mean of a layer's output, E[dW x] and the errors from before it, is a
    constant per channel, which the bias takes back for nothing (Nagel et al., arXiv:1906.04721).
    Each layer sees what the corrected ones before it compute. Means are those before the clamp, in
    which elements that the clamp stops in fp32 hardly count: nobody sees their errors. The shift is the mean over
    samples with ``trim`` of them cut off at either end, which single odd ones cannot move; it is
    kept only where the squared error of the means falls on samples held out from it.
    ``samples`` of the calibration data are used, by default more for smaller networks.
    """

    name: ClassVar[str] = "bias-correct"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (BiasCorrections,)

    samples: int | None = Field(default=None, ge=2, description="calibration samples to use")
    trim: float = Field(default=0.2, ge=0, lt=0.5, description="share of the samples left out at either end")
    held_out: float = Field(default=0.25, gt=0, lt=1, description="share of the samples that only judges")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with corrected biases, each a constant of its layer's own."""
        graph = own_biases(graph)
        data = ctx.facts.get(CalibrationData)
        runs = parts(graph, data, self.samples or affordable(graph), _RUN, 4 * elements(graph))
        names = [layer.name for layer in layers(graph)]
        arrays = constants(graph)
        biases = {o.result.name: a for o in graph.ops if (a := _bias(o, arrays)) is not None}
        accepted: list[str] = []

        def revise(step: Step) -> Sequence[Op]:
            name = step.op.result.name
            if name not in names:
                return ()
            ctx.progress(self.name, names.index(name) + 1, len(names))
            shift = self._shift(np.concatenate([_errors(step.op, *pair) for pair in step.unclamped()]))
            if shift is None:
                return ()
            accepted.append(name)
            return [constant(step.op.operands[2].name, biases[name] + shift.astype(np.float32))]

        if sum(map(samples_in, runs)) > 1:
            graph = Sweep(graph, runs, ctx.threads).run(revise)
        refused = tuple(n for n in names if n not in accepted)
        ctx.log.info("%s: %d layers corrected, %d left as they were", self.name, len(accepted), len(refused))
        ctx.facts.put(BiasCorrections(tuple(accepted), refused))
        return graph

    def _shift(self, errors: Array) -> Array | None:
        """The correction per channel from errors [samples, C], or None where it does not help held-out samples."""
        held = max(1, round(len(errors) * self.held_out))
        fit, judge = errors[:-held], errors[-held:]
        trial = self._trimmed(fit) if len(fit) else errors.mean(axis=0)
        if np.square(judge - trial).sum() >= np.square(judge).sum():
            return None
        return self._trimmed(errors)

    def _trimmed(self, errors: Array) -> Array:
        cut = int(len(errors) * self.trim)
        mean: Array = np.sort(errors, axis=0)[cut : len(errors) - cut].mean(axis=0)
        return mean


def _errors(o: Op, exact: Array, quantized: Array) -> Array:
    """The mean error per sample and output channel, [samples, C] in float64, of results before the clamp of ``o``.

    A dense layer's rows count as samples.
    """
    lo, hi = o.float_attr("lo", -math.inf), o.float_attr("hi", math.inf)
    error = exact - quantized
    if o.kind == "dense":
        return error.reshape(-1, error.shape[-1]).astype(np.float64)
    maps = (2, 3)
    total = error.sum(axis=maps, dtype=np.float64)
    if lo == -math.inf and hi == math.inf:
        return np.asarray(total / math.prod(error.shape[2:]))
    seen = (exact > lo) & (exact < hi)
    error *= seen
    part, count = error.sum(axis=maps, dtype=np.float64), seen.sum(axis=maps)
    weight = count + _STOPPED * (math.prod(error.shape[2:]) - count)
    return np.asarray((part + _STOPPED * (total - part)) / weight)


def _bias(o: Op, arrays: dict[str, Array]) -> Array | None:
    return arrays.get(o.operands[2].name) if o.kind in ("conv2d", "dense") else None
