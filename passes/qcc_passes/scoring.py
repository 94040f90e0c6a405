"""The true error of a candidate: its outputs against fp32's, on data that the choice did not see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph
from qcc.ir.types import Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import Facts, PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.verify.ort import OrtModel
from qcc_passes.activations import snapped
from qcc_passes.curvature import output_spread, whitened
from qcc_passes.facts import BitPlan
from qcc_passes.head import Head, softmax
from qcc_passes.samples import samples_in
from qcc_passes.variants import Variant, with_variants

Array = NDArray[Any]


def _known(passes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """``passes``, which can be made. Raises ConfigError, before anything is measured, and PluginError."""
    for name, options in passes.items():
        make_pass(name, options)
    return passes


ScoredBy = Annotated[dict[str, dict[str, Any]], AfterValidator(_known)]
"""Passes that make of a candidate the network that is scored, in order, and their options."""

JudgingShare = Annotated[float, Field(gt=0, lt=1, description="share of the calibration data, for judging")]


_SOFTENED: Final = 2.0
"""The temperature of softened outputs, in standard deviations of a sample's logits."""


def compiled_by() -> dict[str, dict[str, Any]]:
    """The passes where none are named."""
    return {"quantize": {}, **corrected_by()}


def corrected_by() -> dict[str, dict[str, Any]]:
    """Those of them that follow quantize."""
    return {"round-weights": {}, "bias-correct": {}}


@dataclass(frozen=True, slots=True)
class Score:
    """``kl`` in nats per sample, with its standard error; ``agreement`` of the top-1 where there are classes.

    ``soft`` is what candidates are ranked by, as nothing else of a few hundred samples tells them apart as well.
    A network is sure of most samples, above all of those that it was trained on: they hardly count in KL, and the
    few others then decide. So it is the KL of logits divided by a temperature (Hinton et al., arXiv:1503.02531), which
    counts errors of all logits; on blends of two samples each (as in mixup, Zhang et al., arXiv:1710.09412), which
    the network is less sure of.
    """

    kl: float
    error: float
    agreement: float | None
    blends: Array
    """The softened KL of each blend, [N]."""

    @property
    def soft(self) -> float:
        """The mean over the blends."""
        return float(self.blends.mean())

    def surely_below(self, other: Score, errors: float = 2.0) -> bool:
        """Whether ``soft`` is less than ``other``'s on the same samples by so many standard ``errors``."""
        difference = self.blends - other.blends
        noise = difference.std() / math.sqrt(max(len(difference) - 1, 1))
        return bool(difference.mean() < -errors * noise)


@dataclass(frozen=True, slots=True)
class Scorer:
    """KL(fp32 || candidate); half the squared error over the variance for outputs that are plain numbers."""

    top: Head
    batches: list[dict[str, Array]]
    reference: list[dict[str, Array]]
    blends: list[dict[str, Array]]
    blend_reference: list[dict[str, Array]]
    spread: Mapping[str, Array]
    temperature: Mapping[str, float]
    """Of softened outputs, by name."""
    threads: int

    @classmethod
    def of(cls, top: Head, data: CalibrationData, threads: int, batch: int = 16) -> Scorer:
        """Score on all of ``data``."""
        model = OrtModel(export_onnx(top.graph), threads=threads)
        batches, blends = (top.batches(d, batch, d.samples) for d in (data, _blended(data)))
        spread = output_spread(top, data, model, batch, data.samples)
        reference, blend_reference = ([model.run(inputs) for inputs in each] for each in (batches, blends))
        temperature = {
            name: _SOFTENED * _deviation(np.concatenate([each[name] for each in blend_reference]), axis)
            for name, axis in top.axes.items()
            if axis is not None
        }
        return cls(top, batches, reference, blends, blend_reference, spread, temperature, threads)

    def score(self, variants: Mapping[str, Variant], grids: Mapping[str, Quant]) -> Score:
        """With ``variants`` of the layers that they name, and the values that ``grids`` names on these."""
        graph = snapped(with_variants(self.top.graph, variants), grids)
        return self.judge(OrtModel(export_onnx(graph), threads=self.threads))

    def judge(self, model: OrtModel) -> Score:
        """A model of the same inputs and outputs."""
        losses, agreeing = [], []
        for inputs, reference in zip(self.batches, self.reference, strict=True):
            found = model.run(inputs)
            losses.append(self._loss(reference, found, {}))
            if self.top.classifies:
                name = self.top.classifier
                agreeing.append(reference[name].argmax(axis=-1) == found[name].argmax(axis=-1))
        each = np.concatenate(losses)
        agreement = float(np.concatenate(agreeing).mean()) if agreeing else None
        error = float(each.std() / max(len(each) - 1, 1) ** 0.5)
        blends = zip(self.blends, self.blend_reference, strict=True)
        soft = [self._loss(reference, model.run(inputs), self.temperature) for inputs, reference in blends]
        return Score(float(each.mean()), error, agreement, np.concatenate(soft))

    def _loss(
        self, reference: Mapping[str, Array], found: Mapping[str, Array], temperature: Mapping[str, float]
    ) -> Array:
        """Per sample, [N]; of logits divided by ``temperature``, where an output has one."""
        total = np.zeros(samples_in(reference))
        for name, axis in self.top.axes.items():
            exact, other = reference[name].astype(np.float64), found[name].astype(np.float64)
            if axis is None:
                part = Head(self.top.graph, {name: None}, self.top.layers)
                each = np.square(whitened(part, reference, {name: other - exact}, self.spread)) / 2
            else:
                t = temperature.get(name, 1.0)
                p, q = softmax(exact / t, axis), softmax(other / t, axis)
                each = p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))
            total += each.reshape(len(each), -1).sum(axis=1)
        return total


def _deviation(logits: Array, axis: int) -> float:
    """The standard deviation of a sample's logits, on average; 1 where all are alike."""
    return float(logits.std(axis=axis, dtype=np.float64).mean()) or 1.0


def _blended(data: CalibrationData) -> CalibrationData:
    """The mean of every sample and one far from it."""
    apart = max(data.samples // 3, 1)
    return CalibrationData({n: (a + np.roll(a, apart, axis=0)) / 2 for n, a in data.arrays.items()})


@dataclass(frozen=True, slots=True)
class Trial:
    """Candidates as they will be compiled: quantized, rounded, corrected on data that they are not scored on."""

    graph: Graph
    ctx: PassContext
    passes: tuple[Pass, ...]

    @classmethod
    def of(cls, graph: Graph, ctx: PassContext, scored_by: ScoredBy, fitting: CalibrationData) -> Trial | None:
        """Of ``graph`` with the facts of ``ctx``; None without passes, or where these need other facts as well."""
        passes = tuple(make_pass(name, options) for name, options in scored_by.items())
        if not passes:
            return None
        facts = Facts()
        for kind in ctx.facts.kinds():
            facts.put(ctx.facts.get(kind))
        facts.put(fitting)
        given = facts.kinds() | {kind for p in passes for kind in p.gives}
        if any(need not in given for p in passes for need in p.needs):
            return None
        own = PassContext(ctx.seed, ctx.threads, ctx.capabilities, facts, ctx.analyses, cache=ctx.cache, log=ctx.log)
        return cls(graph, own, passes)

    def model(self, plan: BitPlan, outputs: Sequence[str]) -> OrtModel:
        """The quantized network with these bits, in onnxruntime; it gives ``outputs``. Raises what the passes raise."""
        self.ctx.facts.put(plan)
        quantized = Pipeline(self.passes).run(self.graph, self.ctx)
        return OrtModel(export_onnx(quantized, keep=outputs), threads=self.ctx.threads)
