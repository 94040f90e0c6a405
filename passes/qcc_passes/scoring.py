"""The true error of a candidate: its outputs against fp32's, on data that the choice did not see."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph
from qcc.ir.types import Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import Facts, PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.ort import OrtModel
from qcc_passes.activations import snapped
from qcc_passes.curvature import output_spread, whitened
from qcc_passes.facts import BitPlan
from qcc_passes.head import Head, softmax
from qcc_passes.samples import samples_in
from qcc_passes.variants import Variant, with_variants

Array = NDArray[Any]


_TEMPERATURE: Final = 4.0


@dataclass(frozen=True, slots=True)
class Score:
    """``kl`` in nats per sample, with its standard error; ``agreement`` of the top-1 where there are classes.

    ``soft`` is the KL of the logits divided by a temperature.
    """

    kl: float
    soft: float
    error: float
    agreement: float | None
    samples: Array
    """KL and soft KL of each sample, [2, N]."""

    def surely_below(self, other: Score) -> bool:
        """Whether the soft KL is less than ``other``'s on the same samples by two standard errors.

        A few samples decide KL itself, whose differences are noise even where the soft one falls to half.
        """
        difference = self.samples[1] - other.samples[1]
        noise = difference.std() / math.sqrt(max(len(difference) - 1, 1))
        return bool(difference.mean() < -2 * noise)

    @property
    def rank(self) -> float:
        """What candidates are ranked by: the geometric mean of KL and soft KL.

        Samples that the network is sure of, as most that it was trained on, hardly count in KL, which a
        few others then decide. The soft one counts errors of all logits of all samples.
        """
        return math.sqrt(max(self.kl, 0.0) * max(self.soft, 0.0))


@dataclass(frozen=True, slots=True)
class Scorer:
    """KL(fp32 || candidate); half the squared error over the variance for outputs that are plain numbers."""

    top: Head
    batches: list[dict[str, Array]]
    reference: list[dict[str, Array]]
    spread: Mapping[str, Array]
    threads: int

    @classmethod
    def of(cls, top: Head, data: CalibrationData, threads: int, batch: int = 16) -> Scorer:
        """Score on all of ``data``."""
        model = OrtModel(export_onnx(top.graph), threads=threads)
        batches = top.batches(data, batch, data.samples)
        spread = output_spread(top, data, model, batch, data.samples)
        return cls(top, batches, [model.run(inputs) for inputs in batches], spread, threads)

    def score(self, variants: Mapping[str, Variant], grids: Mapping[str, Quant]) -> Score:
        """With ``variants`` of the layers that they name, and the values that ``grids`` names on these."""
        graph = snapped(with_variants(self.top.graph, variants), grids)
        return self.judge(OrtModel(export_onnx(graph), threads=self.threads))

    def judge(self, model: OrtModel) -> Score:
        """A model of the same inputs and outputs."""
        losses, soft, agreeing = [], [], []
        for inputs, reference in zip(self.batches, self.reference, strict=True):
            found = model.run(inputs)
            losses.append(self._loss(reference, found, 1.0))
            soft.append(self._loss(reference, found, _TEMPERATURE))
            if self.top.classifies:
                name = self.top.classifier
                agreeing.append(reference[name].argmax(axis=-1) == found[name].argmax(axis=-1))
        each = np.concatenate(losses)
        agreement = float(np.concatenate(agreeing).mean()) if agreeing else None
        error = float(each.std() / max(len(each) - 1, 1) ** 0.5)
        softened = np.concatenate(soft)
        return Score(float(each.mean()), float(softened.mean()), error, agreement, np.stack([each, softened]))

    def _loss(self, reference: Mapping[str, Array], found: Mapping[str, Array], temperature: float) -> Array:
        """Per sample, [N]."""
        total = np.zeros(samples_in(reference))
        for name, axis in self.top.axes.items():
            exact, other = reference[name].astype(np.float64), found[name].astype(np.float64)
            if axis is None:
                part = Head(self.top.graph, {name: None}, self.top.layers)
                each = np.square(whitened(part, reference, {name: other - exact}, self.spread)) / 2
            else:
                p, q = softmax(exact / temperature, axis), softmax(other / temperature, axis)
                each = p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))
            total += each.reshape(len(each), -1).sum(axis=1)
        return total


@dataclass(frozen=True, slots=True)
class Trial:
    """Candidates as they will be compiled: quantized, rounded, corrected on data that they are not scored on."""

    graph: Graph
    ctx: PassContext
    passes: tuple[Pass, ...]

    @classmethod
    def of(cls, graph: Graph, ctx: PassContext, passes: Sequence[Pass], fitting: CalibrationData) -> Trial | None:
        """Of ``graph`` with the facts of ``ctx``; None without ``passes``, or where these need other facts as well."""
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
        return cls(graph, own, tuple(passes))

    def model(self, plan: BitPlan, outputs: Sequence[str]) -> OrtModel:
        """The quantized network with these bits, in onnxruntime; it gives ``outputs``. Raises what the passes raise."""
        self.ctx.facts.put(plan)
        quantized = Pipeline(self.passes).run(self.graph, self.ctx)
        return OrtModel(export_onnx(quantized, keep=outputs), threads=self.ctx.threads)
