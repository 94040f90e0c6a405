"""Mixed precision: bits per layer from sensitivity and costs, solved as an integer linear program."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import BudgetError, ConfigError, PassError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.candidates import Candidate, Candidates
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.latency import LatencyTable
from qcc_passes.assignment import DROP, Assignment, Choice, Group, assign, evaluated
from qcc_passes.costs import LATENCY
from qcc_passes.facts import BitPlan
from qcc_passes.head import Head, fitting_part, head, held_out_part, limited
from qcc_passes.perturbation import Perturbations
from qcc_passes.refine import refine
from qcc_passes.samples import samples_in
from qcc_passes.scene import DEFAULT_BITS, Program, Scene
from qcc_passes.scoring import JudgingShare, Score, ScoredBy, Scorer, Trial, compiled_by

_TRIES: Final = 16
_LARGE_MACS: Final = 1e8
"""Multiply-accumulates per sample above which a network is not refined by default."""
WIDE_ENDS: Final = ", wide ends"
"""Ends the name of what an objective chooses with the first and last layer at their widest."""
Objective = Literal["pairwise", "separate", "labels", "curvature", "uniform", "refined"]


class MixedPrecision(Pass):
    """Choose bits per layer: least sensitivity within budgets, the best of several by true KL.

    ``budgets`` bounds, together, ``size`` (bytes of packed weights), ``bits`` (average per weight),
    ``bops`` (multiply-accumulates times weight bits times activation bits, per sample), ``latency``
    (seconds per call, from a measured table), ``peak_memory`` (bytes of activations, per sample) and
    ``drop`` (predicted KL, nats per sample). ``minimize`` names what is made small within them: ``drop``,
    or a cost.

    Every objective that has been measured yields a candidate: ``curvature`` (HAWQ-V2's Omega, one for
    each sensitivity), ``separate`` (each choice's own perturbation), ``pairwise`` (with the inter-layer
    terms), ``labels`` (the labelled loss), and ``uniform`` (one width for all); ``refined`` starts from the
    best of them and tries ``tries`` moves on the data that sensitivities are measured on. Those that have no more bits
    than another anywhere are left out. The candidate is kept whose softened outputs are nearest to those of fp32, by
    KL, on blends of held-out calibration data; but uniform bits are, unless it is better than they by more than noise.
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
    ends: int | None = Field(default=None, ge=2, le=8, description="bits of the first and last layer; null: chosen")
    objectives: tuple[Objective, ...] = Field(
        default=("pairwise", "separate", "labels", "curvature", "uniform", "refined"), min_length=1
    )
    held_out: JudgingShare = 0.4
    scored_by: ScoredBy = Field(
        default_factory=compiled_by,
        description="passes that make a candidate's network, where what they need was measured, and their options; "
        "none: rounding alone. The default pipeline names its own",
    )
    tries: int | None = Field(
        default=None, ge=0, description="assignments that refining tries, at most; null: 16, none for large networks"
    )
    try_samples: int = Field(default=128, ge=1, description="samples that it tries them on")
    cuts: int = Field(default=60, ge=1, description="tangent planes of the pairwise objective, at most")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """Puts the best plan into the context. Raises ConfigError on budgets or layers that do not fit."""
        top = head(graph)
        if LATENCY in self.budgets and ctx.facts.find(LatencyTable) is None:
            raise ConfigError("mixed-precision: a budget for latency needs a measured table: pass --latency")
        scene = Scene.of(top, self.widths(top, ctx), self.site_widths(ctx), ctx)
        programs = scene.programs(self.objectives, ctx)
        data = ctx.facts.get(CalibrationData)
        fitting = fitting_part(data, self.held_out)
        trial = Trial.of(graph, ctx, self.scored_by, fitting)
        scorer = Scorer.of(top, held_out_part(data, self.held_out), ctx.threads)
        solved = list(self._solved(scene, programs, ctx))
        if (refined := self._refined(scene, programs, [s for _, s in solved], trial, ctx)) is not None:
            solved.append(("refined", refined))
        if self.minimize == DROP:
            solved = _undominated(scene.groups(programs[0]), solved)
        tried: dict[tuple[int, ...], Candidate] = {}
        scores: dict[tuple[int, ...], Score] = {}
        for done, (objective, assignment) in enumerate(solved, 1):
            if assignment.picks not in tried:
                scores[assignment.picks] = scene.score(assignment.picks, scorer, trial)
                tried[assignment.picks] = _candidate(objective, scene, assignment, scores[assignment.picks])
            ctx.progress(self.name, done, len(solved))
        plain = {s.picks for name, s in solved if name.startswith("uniform")}
        ranked = [tried[picks] for picks in _ranked(scores, plain)]
        best = ranked[0]
        ctx.log.info("mixed-precision: %s wins with KL %.3g", best.objective, best.kl)
        samples = sum(map(samples_in, scorer.batches))
        plan = scene.by_value(best.activation_bits)
        ctx.facts.put(Candidates(tuple(ranked), scene.facts(programs), self.budgets, self.minimize, plan, samples))
        ctx.facts.put(BitPlan(best.weight_bits, plan))
        return graph

    def _solved(self, scene: Scene, programs: Sequence[Program], ctx: PassContext) -> Iterator[tuple[str, Assignment]]:
        """Each program's solution, and the uniform ones where there are any."""
        for done, program in enumerate(programs, 1):
            groups = scene.groups(program)
            gram = None if program.perturbations is None else _form(scene, groups, program.perturbations)
            yield program.objective, assign(groups, self.budgets, gram, self.minimize, self.cuts)
            if program.objective.startswith("sensitivity-") and (held := _ends_held(scene, groups)) != groups:
                with suppress(BudgetError):
                    found = assign(held, self.budgets, None, self.minimize)
                    yield program.objective + WIDE_ENDS, _among(groups, held, found)
            ctx.progress("assign", done, len(programs))
        if "uniform" in self.objectives:
            groups = scene.groups(programs[0])
            for name, some in (("uniform", groups), ("uniform" + WIDE_ENDS, _ends_held(scene, groups))):
                if (plain := uniform(some, self.budgets)) is not None:
                    yield name, _among(groups, some, plain)

    def _refined(
        self,
        scene: Scene,
        programs: Sequence[Program],
        found: Sequence[Assignment],
        trial: Trial | None,
        ctx: PassContext,
    ) -> Assignment | None:
        """The best of ``found`` after trying moves; None where nothing says which to try."""
        perturbed = next((p for p in programs if p.perturbations is not None), None)
        tries = self._tries(scene.top)
        if "refined" not in self.objectives or perturbed is None or self.minimize != DROP or DROP in self.budgets:
            return None
        if tries == 0:
            ctx.log.info("mixed-precision: candidates are not refined: each try of a network of this size takes long")
            return None
        fitting = limited(fitting_part(ctx.facts.get(CalibrationData), self.held_out), self.try_samples)
        scorer = Scorer.of(scene.top, fitting, ctx.threads)
        groups = scene.groups(perturbed)
        spent = 0

        def error(picks: tuple[int, ...]) -> float:
            nonlocal spent
            spent += 1
            ctx.progress("refine", min(spent, tries), tries)
            return scene.score(picks, scorer, trial).soft

        start = min(dict.fromkeys(s.picks for s in found), key=error)
        form = _form(scene, groups, perturbed.perturbations)
        picks = refine(groups, start, form, self.budgets, error, max(tries - spent, 1))
        return evaluated(groups, picks, form)

    def _tries(self, top: Head) -> int:
        if self.tries is not None:
            return self.tries
        return 0 if sum(layer.macs for layer in top.layers) > _LARGE_MACS else _TRIES

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


def _ranked(scores: Mapping[tuple[int, ...], Score], plain: Collection[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The assignments, best first; the better ``plain`` one stays first unless another is surely better."""
    ranked = sorted(scores, key=lambda picks: scores[picks].soft)
    first = next((picks for picks in ranked if picks in plain), None)
    if first is not None and not scores[ranked[0]].surely_below(scores[first]):
        ranked.remove(first)
        ranked.insert(0, first)
    return ranked


def _undominated(groups: Sequence[Group], solved: Sequence[tuple[str, Assignment]]) -> list[tuple[str, Assignment]]:
    """``solved`` without those that have no more bits than another anywhere: by chance they might score better."""
    bits = {s.picks: np.array([_bits(g.choices[p]) for g, p in zip(groups, s.picks, strict=True)]) for _, s in solved}
    return [(n, s) for n, s in solved if not any((b >= bits[s.picks]).all() and p != s.picks for p, b in bits.items())]


def _bits(choice: Choice) -> tuple[int, int]:
    return choice.weight_bits, choice.activation_bits


def _ends_held(scene: Scene, groups: Sequence[Group]) -> list[Group]:
    """``groups`` with the first and last layer at their widest."""
    ends = {scene.top.layers[0].name, scene.top.layers[-1].name}
    held = []
    for g in groups:
        widest = max(c.weight_bits for c in g.choices)
        choices = tuple(c for c in g.choices if g.name not in ends or c.weight_bits == widest)
        held.append(Group(g.name, choices, g.site))
    return held


def _among(groups: Sequence[Group], fewer: Sequence[Group], found: Assignment) -> Assignment:
    """``found`` for groups of ``fewer`` choices, as one for ``groups``."""
    picks = (g.choices.index(f.choices[p]) for g, f, p in zip(groups, fewer, found.picks, strict=True))
    return replace(found, picks=tuple(picks))


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


def _form(scene: Scene, groups: Sequence[Group], perturbations: Perturbations | None) -> NDArray[np.float64]:
    """Predicted nats per sample over all choices, as a quadratic form. Raises PassError without perturbations."""
    if perturbations is None:
        raise PassError("mixed-precision: inter-layer terms were not measured: run sensitivity-perturbation before it")
    return perturbations.of(scene.options(groups)) / 2


def _candidate(objective: str, scene: Scene, solved: Assignment, score: Score) -> Candidate:
    weight_bits, site_bits = scene.weight_bits(solved.picks), scene.activation_bits(solved.picks)
    return Candidate(
        objective,
        weight_bits,
        site_bits,
        value=solved.objective,
        gap=solved.gap,
        costs=solved.used,
        kl=score.kl,
        kl_error=score.error,
        softened=score.soft,
        agreement=score.agreement,
    )
