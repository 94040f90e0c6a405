"""Whether a change of a FLOAT or QUANTIZED graph pays in the network that is compiled from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from qcc.errors import ConfigError
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.layers import without_grids
from qcc_passes.facts import BitPlan
from qcc_passes.head import fitting_part, head, held_out_part
from qcc_passes.scoring import Score, ScoredBy, Scorer, Trial


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate: nats per sample, and those of softened outputs, on held-out data (see ``Score``)."""

    name: str
    kl: float
    soft: float


@dataclass(frozen=True, slots=True)
class Court:
    """Scores networks as they will be compiled, against fp32, on calibration data that they were not fitted to."""

    scorer: Scorer
    trial: Trial

    @classmethod
    def of(cls, graph: Graph, ctx: PassContext, scored_by: ScoredBy, held_out: float) -> Court:
        """For graphs that compute what ``graph`` does, and have its values' names.

        ``scored_by`` quantizes them on all but ``held_out`` of the calibration data. Raises ConfigError where these
        need what no pass has measured.
        """
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        trial = Trial.of(graph, ctx, scored_by, fitting_part(data, held_out))
        if trial is None:
            raise ConfigError(
                f"candidates are judged once {', '.join(scored_by)} have compiled them: run calibrate before"
            )
        return cls(Scorer.of(head(without_grids(graph)), held_out_part(data, held_out), ctx.threads), trial)

    def score(self, graph: Graph, plan: BitPlan) -> Score:
        """Of ``graph`` with these bits. Raises what the passes raise."""
        names = [v.name for v in self.scorer.top.graph.outputs]
        return self.scorer.judge(replace(self.trial, graph=graph).model(plan, names))

    def prefers(self, changed: Graph, graph: Graph, name: str, ctx: PassContext) -> bool:
        """Whether ``changed`` is better than ``graph`` at the bits of ``ctx``; the pass ``name`` says so in the log."""
        plan = ctx.facts.find(BitPlan) or BitPlan({}, {})
        before, after = (self.score(g, plan) for g in (graph, changed))
        told = (name, before.kl, before.soft, after.kl, after.soft)
        ctx.log.info("%s: KL %.3g, of softened outputs %.3g; with the change %.3g, %.3g", *told)
        return better(after, before)


def better(score: Score, other: Score) -> bool:
    """Whether the KL of softened outputs is less by a standard error, and KL itself no more.

    One alone falls by chance every other time; and what gains less than a standard error on held-out data (the rule
    of Breiman et al., Classification and Regression Trees, 1984) loses on other data as often as not.
    """
    return score.kl <= other.kl and score.surely_below(other, 1.0)
