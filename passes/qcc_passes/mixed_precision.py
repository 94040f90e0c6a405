"""Mixed precision: bits per layer from sensitivity and costs, solved as an integer linear program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from qcc.errors import BudgetError, ConfigError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.candidates import Candidate, Candidates
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.latency import LatencyTable
from qcc_passes.assignment import DROP, Assignment, Group, assign
from qcc_passes.costs import LATENCY
from qcc_passes.facts import BitPlan
from qcc_passes.head import Head, head, held_out_part, samples_in
from qcc_passes.scene import DEFAULT_BITS, Program, Scene
from qcc_passes.scoring import Scorer

Objective = Literal["pairwise", "separate", "labels", "curvature", "uniform"]


class MixedPrecision(Pass):
    """Choose bits per layer: least sensitivity within budgets, the best of several by true KL.

    ``budgets`` bounds, together, ``size`` (bytes of packed weights), ``bits`` (average per weight),
    ``bops`` (multiply-accumulates times weight bits times activation bits, per sample), ``latency``
    (seconds per call, from a measured table), ``peak_memory`` (bytes of activations, per sample) and
    ``drop`` (predicted KL, nats per sample). ``minimize`` names what is made small within them: ``drop``,
    or a cost.

    Every objective that has been measured yields a candidate: ``curvature`` (HAWQ-V2's Omega, one for
    each sensitivity), ``separate`` (each choice's own perturbation), ``pairwise`` (with the inter-layer
    terms), ``labels`` (the labelled loss), and ``uniform`` (one width for all). The one whose true KL on
    held-out calibration data is least is kept.
    """

    name: ClassVar[str] = "mixed-precision"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (BitPlan, Candidates)

    budgets: dict[str, float] = Field(min_length=1)
    minimize: str = DROP
    weight_bits: tuple[int, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)
    activation_bits: tuple[int, ...] = Field(default=(DEFAULT_BITS,), min_length=1)
    keep: dict[str, int] = Field(default_factory=dict, description="layers whose bits are given")
    ends: int | None = Field(default=8, ge=2, le=8, description="bits of the first and last layer; null: free")
    objectives: tuple[Objective, ...] = Field(
        default=("pairwise", "separate", "labels", "curvature", "uniform"), min_length=1
    )
    held_out: float = Field(default=0.25, gt=0, lt=1, description="share of the calibration data, for scoring")
    cuts: int = Field(default=60, ge=1, description="tangent planes of the pairwise objective, at most")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """Puts the best plan into the context. Raises ConfigError on budgets or layers that do not fit."""
        top = head(graph)
        if LATENCY in self.budgets and ctx.facts.find(LatencyTable) is None:
            raise ConfigError("mixed-precision: a budget for latency needs a measured table: pass --latency")
        scene = Scene.of(top, self.widths(top, ctx), self.site_widths(ctx), ctx)
        programs = scene.programs(self.objectives, ctx)
        tried: dict[tuple[Any, ...], Candidate] = {}
        scorer = Scorer.of(top, held_out_part(ctx.facts.get(CalibrationData), self.held_out), ctx.threads)
        for done, (objective, solved) in enumerate(self._solved(scene, programs), 1):
            bits = scene.weight_bits(solved)
            key = (tuple(bits.items()), tuple(scene.activation_bits(solved).items()))
            if key not in tried:
                tried[key] = _candidate(objective, scene, solved, scorer)
            ctx.progress(self.name, done, len(programs) + ("uniform" in self.objectives))
        ranked = sorted(tried.values(), key=lambda c: c.kl)
        best = ranked[0]
        ctx.log.info("mixed-precision: %s wins with KL %.3g", best.objective, best.kl)
        samples = sum(map(samples_in, scorer.batches))
        plan = scene.by_value(best.activation_bits)
        ctx.facts.put(Candidates(tuple(ranked), scene.facts(programs), self.budgets, self.minimize, plan, samples))
        ctx.facts.put(BitPlan(best.weight_bits, plan))
        return graph

    def _solved(self, scene: Scene, programs: Sequence[Program]) -> Iterable[tuple[str, Assignment]]:
        """Each program's solution, and the uniform one where there is one."""
        for program in programs:
            groups = scene.groups(program)
            gram = None if program.perturbations is None else program.perturbations.of(scene.options(groups)) / 2
            yield program.objective, assign(groups, self.budgets, gram, self.minimize, self.cuts)
        if "uniform" in self.objectives and programs:
            groups = scene.groups(programs[0])
            if (found := uniform(groups, self.budgets)) is not None:
                yield "uniform", found

    def widths(self, top: Head, ctx: PassContext) -> dict[str, tuple[int, ...]]:
        """The weight widths that each layer may take. Raises ConfigError."""
        able = sorted(set(self.weight_bits) & ctx.capabilities.weight_bits)
        if not able:
            have = ", ".join(map(str, sorted(ctx.capabilities.weight_bits)))
            raise ConfigError(f"mixed-precision: the target has weights of {have} bits, none of which is asked for")
        names = [layer.name for layer in top.layers]
        if unknown := sorted(set(self.keep) - set(names)):
            raise ConfigError(f"mixed-precision: no layer '{unknown[0]}' to keep; layers: {', '.join(names)}")
        if foreign := sorted(set(self.keep.values()) - ctx.capabilities.weight_bits):
            raise ConfigError(f"mixed-precision: {foreign[0]} bits to keep, which the target's weights do not have")
        widths = {name: tuple(able) for name in names}
        if self.ends is not None:
            widths[names[0]] = widths[names[-1]] = (self.ends,)
        return widths | {name: (bits,) for name, bits in self.keep.items()}

    def site_widths(self, ctx: PassContext) -> tuple[int, ...]:
        """The widths that activations may take; none where only the default is asked for. Raises ConfigError."""
        if self.activation_bits == (DEFAULT_BITS,):
            return ()
        able = tuple(sorted(set(self.activation_bits) & ctx.capabilities.activation_bits))
        if not able:
            have = ", ".join(map(str, sorted(ctx.capabilities.activation_bits)))
            raise ConfigError(f"mixed-precision: the target has activations of {have} bits, none of which is asked for")
        return able


def uniform(groups: Sequence[Group], budgets: Mapping[str, float]) -> Assignment | None:
    """The widest single weight width (and widest activations) within ``budgets``, where a group has a choice."""
    widths = sorted({c.weight_bits for g in groups for c in g.choices if len(g.choices) > 1}, reverse=True)
    widest = [[c for c in g.choices if c.activation_bits == max(d.activation_bits for d in g.choices)] for g in groups]
    for bits in (b for b in widths if b):
        picked = [next((c for c in some if c.weight_bits == bits), some[0]) for some in widest]
        fixed = [Group(g.name, (c,), g.site) for g, c in zip(groups, picked, strict=True)]
        try:
            solved = assign(fixed, {m: v for m, v in budgets.items() if m != DROP})
        except BudgetError:
            continue
        picks = tuple(g.choices.index(c) for g, c in zip(groups, picked, strict=True))
        return Assignment(picks, solved.objective, solved.objective, solved.used)
    return None


def _candidate(objective: str, scene: Scene, solved: Assignment, scorer: Scorer) -> Candidate:
    weight_bits, site_bits = scene.weight_bits(solved), scene.activation_bits(solved)
    score = scene.score(weight_bits, site_bits, scorer)
    return Candidate(
        objective,
        weight_bits,
        site_bits,
        solved.objective,
        solved.gap,
        solved.used,
        score.kl,
        score.error,
        score.agreement,
    )
