"""Mixed precision: bits per layer from sensitivity and costs, solved as an integer linear program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import ConfigError, PassError
from qcc.ir.graph import Graph, Stage, constants
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.assignment import Assignment, Choice, Group, assign
from qcc_passes.curvature import Head, head, run, softmax, weight_layers
from qcc_passes.facts import BitPlan
from qcc_passes.layers import Layer
from qcc_passes.perturbation import Perturbations, whitened
from qcc_passes.rounding import nearest, search_scale
from qcc_passes.sensitivity import Sensitivity, output_spread

Objective = Literal["pairwise", "separate", "curvature"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One assignment and what it costs; ``kl`` is measured on held-out data, nats per sample."""

    objective: Objective
    weight_bits: Mapping[str, int]
    value: float
    gap: float
    costs: Mapping[str, float]
    kl: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """All that was tried, best first."""

    tried: tuple[Candidate, ...]


class MixedPrecision(Pass):
    """Choose weight bits per layer: least sensitivity within budgets, the best of several by true KL.

    ``budgets`` bounds ``size`` (bytes of packed weights), ``bits`` (average per weight) and
    ``bops`` (multiply-accumulates times weight bits times activation bits, per sample), together.
    Every objective whose fact has been measured yields a candidate: ``curvature`` (HAWQ-V2's
    Omega), ``separate`` (each layer's own perturbation) and ``pairwise`` (with the inter-layer terms).
    """

    name: ClassVar[str] = "mixed-precision"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (BitPlan, Candidates)

    budgets: dict[str, float] = Field(min_length=1)
    weight_bits: tuple[int, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)
    activation_bits: int = Field(default=8, ge=2, le=8)
    keep: dict[str, int] = Field(default_factory=dict, description="layers whose bits are given")
    ends: int | None = Field(default=8, ge=2, le=8, description="bits of the first and last layer; null: free")
    objectives: tuple[Objective, ...] = Field(default=("pairwise", "separate", "curvature"), min_length=1)
    held_out: int = Field(default=64, ge=1, description="last calibration samples, kept for scoring")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """Puts the best plan into the context. Raises ConfigError on budgets or layers that do not fit."""
        top = head(graph)
        found = weight_layers(top)
        widths = self._widths(found, ctx)
        arrays = {k: v for k, v in constants(top.graph).items() if k in {layer.weight for layer in found}}
        rounded = {
            (layer.name, bits): round_plainly(arrays[layer.weight], bits)
            for layer in found
            for bits in widths[layer.name]
        }
        programs = self._programs(found, widths, arrays, rounded, ctx)
        scorer = Scorer.of(top, ctx.facts.get(CalibrationData), self.held_out)
        tried: list[Candidate] = []
        for done, (objective, groups, gram) in enumerate(programs, 1):
            solved = assign(groups, self.budgets, gram)
            bits = {g.name: g.choices[p].weight_bits for g, p in zip(groups, solved.picks, strict=True)}
            weights = {layer.weight: rounded[layer.name, bits[layer.name]] for layer in found}
            tried.append(_candidate(objective, bits, solved, scorer.kl(weights)))
            ctx.progress(self.name, done, len(programs))
        tried.sort(key=lambda c: c.kl)
        best = tried[0]
        ctx.log.info("mixed-precision: %s wins with KL %.3g", best.objective, best.kl)
        ctx.facts.put(Candidates(tuple(tried)))
        ctx.facts.put(BitPlan(best.weight_bits, {}))
        return graph

    def _widths(self, found: Sequence[Layer], ctx: PassContext) -> dict[str, tuple[int, ...]]:
        """The widths that each layer may take. Raises ConfigError."""
        able = sorted(set(self.weight_bits) & ctx.capabilities.weight_bits)
        if not able:
            have = ", ".join(map(str, sorted(ctx.capabilities.weight_bits)))
            raise ConfigError(f"mixed-precision: the target has weights of {have} bits, none of which is asked for")
        names = [layer.name for layer in found]
        if unknown := sorted(set(self.keep) - set(names)):
            raise ConfigError(f"mixed-precision: no layer '{unknown[0]}' to keep; layers: {', '.join(names)}")
        widths = {name: tuple(able) for name in names}
        if self.ends is not None:
            widths[names[0]] = widths[names[-1]] = (self.ends,)
        return widths | {name: (bits,) for name, bits in self.keep.items()}

    def _programs(
        self,
        found: Sequence[Layer],
        widths: Mapping[str, tuple[int, ...]],
        arrays: Mapping[str, NDArray[np.float32]],
        rounded: Mapping[tuple[str, int], NDArray[np.float32]],
        ctx: PassContext,
    ) -> list[tuple[Objective, list[Group], NDArray[np.float64] | None]]:
        """One program per objective whose fact is there. Raises PassError when none is."""
        options = [(layer.name, bits) for layer in found for bits in widths[layer.name]]
        programs: list[tuple[Objective, list[Group], NDArray[np.float64] | None]] = []
        curvature, perturbed = ctx.facts.find(Sensitivity), ctx.facts.find(Perturbations)
        for objective in self.objectives:
            if objective == "curvature" and curvature is not None:
                omega = {
                    (layer.name, b): curvature.curvature[layer.name]
                    * float(np.square(rounded[layer.name, b] - arrays[layer.weight], dtype=np.float64).sum())
                    for layer in found
                    for b in widths[layer.name]
                }
                programs.append((objective, self._groups(found, widths, omega), None))
            elif objective != "curvature" and perturbed is not None:
                gram = perturbed.of(options)
                own = dict(zip(options, np.diag(gram).tolist(), strict=True))
                pairs = gram if objective == "pairwise" else None
                programs.append((objective, self._groups(found, widths, own), pairs))
        if not programs:
            raise PassError(
                "mixed-precision needs sensitivities: run sensitivity-gauss-newton or -perturbation before it"
            )
        return programs

    def _groups(
        self,
        found: Sequence[Layer],
        widths: Mapping[str, tuple[int, ...]],
        sensitivity: Mapping[tuple[str, int], float],
    ) -> list[Group]:
        weights = sum(layer.parameters for layer in found)
        groups = []
        for layer in found:
            choices = []
            for bits in widths[layer.name]:
                costs = {
                    "size": float(math.ceil(layer.parameters * bits / 8)),
                    "bits": layer.parameters * bits / weights,
                    "bops": float(layer.macs * bits * self.activation_bits),
                }
                choices.append(Choice(bits, self.activation_bits, sensitivity[layer.name, bits], costs))
            groups.append(Group(layer.name, tuple(choices)))
        return groups


def round_plainly(weights: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Weights rounded to nearest per output channel, at the scale of least squared error."""
    rows = weights.astype(np.float64).reshape(len(weights), -1)
    codes = nearest(rows, search_scale(rows, np.ones(rows.shape[1]), bits), bits)
    return codes.weights.reshape(weights.shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Scorer:
    """True KL(fp32 || candidate) on data that the choice did not see; half the squared error for plain numbers."""

    top: Head
    data: CalibrationData
    reference: NDArray[np.float32]
    spread: NDArray[np.float64]

    @classmethod
    def of(cls, top: Head, data: CalibrationData, held_out: int) -> Scorer:
        """Score on the last ``held_out`` samples of ``data``."""
        tail = CalibrationData({k: a[-held_out:] for k, a in data.arrays.items()})
        reference = _outputs(top, tail, {})
        return cls(top, tail, reference, output_spread(top, tail, 16, tail.samples))

    def kl(self, weights: Mapping[str, NDArray[np.float32]]) -> float:
        """Mean nats per sample with these weights in place of the model's."""
        output = _outputs(self.top, self.data, weights)
        if not self.top.logits:
            delta = whitened(self.top, self.reference, output.astype(np.float64) - self.reference, self.spread)
            return float(np.square(delta).sum() / (2 * len(output)))
        p, q = (softmax(z.astype(np.float64)) for z in (self.reference, output))
        return float((p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300)))).sum(axis=-1).mean())


def _outputs(top: Head, data: CalibrationData, weights: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([run(top.graph, inputs, weights)[top.output] for inputs in data.batches(16)])


def _candidate(objective: Objective, bits: Mapping[str, int], solved: Assignment, kl: float) -> Candidate:
    return Candidate(objective, bits, solved.objective, solved.gap, solved.used, kl)
