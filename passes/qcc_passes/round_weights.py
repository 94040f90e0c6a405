"""Low-bit weights that keep each layer's output, chosen on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Op, Stage, constant
from qcc.ir.types import Dyadic, Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.windows import Window
from qcc_passes.layers import LAYER_KINDS
from qcc_passes.rounding import Codes, compensated, round_rows
from qcc_passes.sweep import Step, sweep

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rounded:
    """What the pass did to one layer: squared output error on held-out samples, relative to the output's."""

    layer: str
    bits: int
    before: float
    after: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class RoundedWeights:
    """One entry per layer that the pass tried, in order."""

    layers: tuple[Rounded, ...]


class RoundWeights(Pass):
    """Weights below 8 bits: GPTQ, then integer coordinate descent with scale refit, on quantized inputs.

    Layers are visited in order, each seeing what the rounded ones before it compute; the target is
    the fp32 output (``compensate``) or the layer's own weights. A layer keeps its rounding to
    nearest unless the error of its output on held-out samples falls.
    """

    name: ClassVar[str] = "round-weights"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (RoundedWeights,)

    below: int = Field(default=8, ge=2, le=9, description="round layers whose weights have fewer bits")
    samples: int = Field(default=128, ge=2, description="calibration samples to use")
    held_out: float = Field(default=0.25, gt=0, lt=1, description="share of them that only judges")
    positions: int = Field(default=20_000, ge=16, description="output positions per layer, over all samples")
    compensate: bool = Field(default=True, description="aim at the fp32 output, undoing upstream error")
    damping: float = Field(default=0.01, gt=0, description="share of the mean diagonal added to the Gram matrix")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        inputs = next(data.batches(min(self.samples, data.samples)))
        rng = ctx.rng()
        todo = sum(self._bits(o) is not None for o in graph.ops)
        done: list[Rounded] = []

        def revise(step: Step) -> Sequence[Op]:
            if (bits := self._bits(step.op)) is None:
                return ()
            verdict, weights = self._round(step, bits, rng)
            done.append(verdict)
            ctx.progress(self.name, len(done), todo)
            said = "rounded" if verdict.accepted else "kept as it was"
            ctx.log.info("%s: %s %s, error %.3g -> %.3g", self.name, verdict.layer, said, verdict.before, verdict.after)
            return [weights] if verdict.accepted else ()

        graph = sweep(graph, inputs, revise) if todo else graph
        ctx.facts.put(RoundedWeights(tuple(done)))
        return graph

    def _bits(self, o: Op) -> int | None:
        """The weight bits of a layer that is to be rounded, None for every other operation."""
        quant = o.operands[1].type.quant if o.kind in LAYER_KINDS else None
        return quant.bits if quant is not None and quant.bits < self.below and quant.axis == 0 else None

    def _round(self, step: Step, bits: int, rng: np.random.Generator) -> tuple[Rounded, Op]:
        """The verdict on one layer, and the constant with its new weights."""
        o = step.op
        real, snapped = step.exact[1].astype(np.float64), step.quantized[1].astype(np.float64)
        groups = o.int_attr("groups") if o.kind == "conv2d" else 1
        codes, scales, before, after, energy = [], [], 0.0, 0.0, 0.0
        rows = len(real) // groups
        for g in range(groups):
            outs = slice(g * rows, (g + 1) * rows)
            fit, judge = self._columns(step, g, groups, rng)
            w, plain = real[outs].reshape(rows, -1), snapped[outs].reshape(rows, -1)
            gram, cross = fit.gram()
            target = compensated(w, gram, cross, self.damping) if self.compensate else w
            best = round_rows(target, gram, bits, self.damping)
            best = Codes(best.codes, best.scale.astype(np.float32).astype(np.float64))
            before += judge.error(w, plain)
            after += judge.error(w, best.weights)
            energy += judge.energy(w)
            codes.append(best.weights)
            scales.append(best.scale)
        weights = np.concatenate(codes).reshape(real.shape)
        quant = Quant(bits, True, tuple(map(Dyadic.of, np.concatenate(scales))), axis=0)
        total = energy or 1.0
        verdict = Rounded(o.result.name, bits, before / total, after / total, after < before)
        return verdict, constant(o.operands[1].name, weights.astype(np.float32), quant=quant)

    def _columns(self, step: Step, group: int, groups: int, rng: np.random.Generator) -> tuple[_Pairs, _Pairs]:
        """Input columns of one group at sampled output positions: those to fit on, those to judge by."""
        sides = (step.exact[0] if self.compensate else step.quantized[0], step.quantized[0])
        images = len(sides[0])
        held = max(1, round(images * self.held_out))
        per_image = max(1, self.positions // images)
        pairs = []
        for image in range(images):
            pair = [_patches(step.op, x[image : image + 1], group, groups) for x in sides]
            count = pair[0].shape[1]
            if count > per_image:
                chosen = rng.choice(count, per_image, replace=False)
                pair = [p[:, chosen] for p in pair]
            pairs.append(pair)
        parts = [
            [np.concatenate(side, axis=1) for side in zip(*p, strict=True)] for p in (pairs[:-held], pairs[-held:])
        ]
        return _Pairs(*parts[0]), _Pairs(*parts[1])


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The same input columns [K, positions]: those of the wanted output, and the quantized ones."""

    exact: Array
    quantized: Array

    def gram(self) -> tuple[Array, Array]:
        """Y Y^T and X Y^T per position, float64."""
        count = self.exact.shape[1]
        x, y = (a.astype(np.float64) for a in (self.exact, self.quantized))
        return y @ y.T / count, x @ y.T / count

    def error(self, weights: Array, approx: Array) -> float:
        """The squared error of the output without its channel means, which bias correction removes."""
        difference = weights @ self.exact - approx @ self.quantized
        return float(np.square(difference - difference.mean(axis=1, keepdims=True)).sum())

    def energy(self, weights: Array) -> float:
        return float(np.square(weights @ self.exact).sum())


def _patches(o: Op, x: Array, group: int, groups: int) -> Array:
    """The columns [K, positions] that one group of a layer multiplies its weights with."""
    if o.kind == "dense":
        return x.reshape(-1, x.shape[-1]).T
    inner = x.shape[1] // groups
    patches = Window.of(o).columns(np.ascontiguousarray(x[:, group * inner : (group + 1) * inner]))
    columns: Array = patches.reshape(inner * patches.shape[2], -1)
    return columns
