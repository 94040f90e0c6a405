"""The true error of a candidate: its outputs against fp32's, on data that the choice did not see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.types import Quant
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.activations import snapped
from qcc_passes.curvature import output_spread, whitened, with_constants
from qcc_passes.head import Head, samples_in, softmax

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Score:
    """``kl`` in nats per sample, with its standard error; ``agreement`` of the top-1 where there are classes."""

    kl: float
    error: float
    agreement: float | None


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

    def score(self, weights: Mapping[str, Array], grids: Mapping[str, Quant]) -> Score:
        """With ``weights`` in place of the constants that they name, and the values that ``grids`` names on these."""
        graph = snapped(with_constants(self.top.graph, weights), grids)
        model = OrtModel(export_onnx(graph), threads=self.threads)
        losses, agreeing = [], []
        for inputs, reference in zip(self.batches, self.reference, strict=True):
            found = model.run(inputs)
            losses.append(self._loss(reference, found))
            if self.top.classifies:
                name = self.top.classifier
                agreeing.append(reference[name].argmax(axis=-1) == found[name].argmax(axis=-1))
        each = np.concatenate(losses)
        agreement = float(np.concatenate(agreeing).mean()) if agreeing else None
        return Score(float(each.mean()), float(each.std() / max(len(each) - 1, 1) ** 0.5), agreement)

    def _loss(self, reference: Mapping[str, Array], found: Mapping[str, Array]) -> Array:
        """Per sample, [N]."""
        total = np.zeros(samples_in(reference))
        for name, axis in self.top.axes.items():
            exact, other = reference[name].astype(np.float64), found[name].astype(np.float64)
            if axis is None:
                part = Head(self.top.graph, {name: None}, self.top.layers)
                each = np.square(whitened(part, reference, {name: other - exact}, self.spread)) / 2
            else:
                p, q = softmax(exact, axis), softmax(other, axis)
                each = p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))
            total += each.reshape(len(each), -1).sum(axis=1)
        return total
