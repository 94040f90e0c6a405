"""Precision groups: blocks of a layer's output channels with bits of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Stage, producers
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.acceptance import Court, Tried
from qcc_passes.channel_errors import ChannelErrors, channel_errors
from qcc_passes.channel_groups import ChannelGroups, arriving, channel_groups
from qcc_passes.channel_orders import reordered
from qcc_passes.channel_rules import channel_axis
from qcc_passes.costs import CostModel
from qcc_passes.facts import BitPlan, WeightBlocks
from qcc_passes.group_candidates import BY_LAYER, Candidate, Drafter, GroupedLayer
from qcc_passes.head import Head, fitting_part, head
from qcc_passes.samples import samples_in
from qcc_passes.scoring import JudgingShare, Score, ScoredBy, compiled_by
from qcc_passes.sensitivity import spread_of
from qcc_passes.variants import round_layers

_METRICS: Final = ("bits", "size", "bops")


@dataclass(frozen=True, slots=True)
class PrecisionGroupsFound:
    """What the pass chose, what it uses of each metric, its predicted error, and what it was compared with."""

    layers: tuple[GroupedLayer, ...]
    used: Mapping[str, float]
    error: float
    rearranged: bool
    tried: tuple[Tried, ...] = ()

    def report(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


class PrecisionGroups(Pass):
    """Give blocks of output channels of every layer bits of their own, within budgets.

    What rounding each channel does to the outputs is measured at every width, on the calibration data. Channels
    are rearranged so that those that need many bits are neighbours. For each layer dynamic programming finds the
    best split of every cost, into blocks of ``align`` channels; an integer program chooses one split per layer.
    Where bits have been chosen by layer, it stays within their bytes; else ``budgets`` bounds ``bits`` (average per
    weight), ``size`` (bytes) and ``bops`` (multiply-accumulates times weight bits times 8, per sample).

    Measured errors miss what later layers make up for. So candidates are compiled by ``scored_by`` on all but
    ``held_out`` of the calibration data, and judged by the KL of softened outputs on the rest. Bits that were chosen by
    layer stay unless another candidate is better: these with each layer's average kept; the integer program's; and
    the better one of the latter in the channels' own order. Within ``budgets`` the least predicted error stays,
    unless the channels' own order, or the widest uniform bits, are better by more than noise. Without ``scored_by`` the
    least predicted error decides.
    """

    name: ClassVar[str] = "precision-groups"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (BitPlan, PrecisionGroupsFound)

    budgets: dict[str, float] = Field(default_factory=dict)
    weight_bits: tuple[int, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)
    align: int | None = Field(
        default=None, ge=1, description="channels of a block; null: 4 to 16, a sixteenth of the layer's"
    )
    ends: int | None = Field(default=None, ge=2, le=8, description="bits of the first and last layer; null: chosen")
    rearrange: bool = True
    samples: int = Field(default=256, ge=1, description="calibration samples to use")
    batch: int = Field(default=16, ge=1, description="samples per pass, where the model leaves it open")
    probes: int = Field(default=4, ge=1, description="random cotangents per batch")
    held_out: JudgingShare = 0.4
    scored_by: ScoredBy = Field(
        default_factory=compiled_by,
        description="passes that make a candidate's network, and their options; none: the least predicted error "
        "decides. The default pipeline names its own",
    )

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph, rearranged; the plan is put into ``ctx``. Raises ConfigError, BudgetError, PassError."""
        widths = self._widths(ctx)
        top = head(graph)
        known = None if self.budgets else ctx.facts.find(BitPlan)
        if known is None and not self.budgets:
            raise ConfigError(f"{self.name}: give budgets, or run a pass that chooses bits by layer before it")
        errors = self._errors(top, widths, ctx)
        costs = CostModel.of(top.graph, top.layers, (), None, ctx.facts.find(WeightBlocks))
        drafts = self._drafts(graph, top, errors, Drafter(costs, widths, self.align), known)
        activation_bits = known.activation_bits if known else {}
        decide = foremost_unless_beaten if known is None else least_measured
        best, tried = self._best(graph, drafts, activation_bits, decide, ctx)
        plan, solved = best.plan(activation_bits), best.solved
        ctx.facts.put(PrecisionGroupsFound(best.layers, dict(solved.used), solved.objective, best.rearranged, tried))
        ctx.facts.put(plan)
        split, layers = len(plan.widths), len(best.layers)
        ctx.log.info("%s: %s: %d of %d layers split", self.name, best.told, split, layers)
        return best.graph

    def _drafts(
        self, graph: Graph, top: Head, errors: ChannelErrors, drafter: Drafter, known: BitPlan | None
    ) -> list[Candidate]:
        """All candidates, those in the channels' own order first."""
        found = channel_groups(graph)
        ways = [(graph, errors)]
        if self.rearrange and (order := _order(graph, found, errors)):
            ways.append((reordered(graph, found, order), _moved(graph, found, order, errors)))
        ends = {} if self.ends is None else dict.fromkeys((top.layers[0].name, top.layers[-1].name), self.ends)
        drafts: list[Candidate] = []
        for rearranged, way in enumerate(ways):
            if known is not None:
                drafts += drafter.within(*way, known.weight_bits, rearranged=bool(rearranged))
            else:
                drafts += drafter.below(*way, self.budgets, ends, rearranged=bool(rearranged))
        return drafts

    def _best(
        self,
        graph: Graph,
        drafts: Sequence[Candidate],
        activation_bits: Mapping[str, int],
        decide: Callable[[Sequence[Candidate], Measure], Candidate],
        ctx: PassContext,
    ) -> tuple[Candidate, tuple[Tried, ...]]:
        """The candidate to take, and what was tried."""
        if not self.scored_by:
            return min(drafts, key=predicted), ()
        court = Court.of(graph, ctx, self.scored_by, self.held_out)
        scores: dict[str, Score] = {}

        def score(c: Candidate) -> Score:
            if c.told not in scores:
                scores[c.told] = s = court.score(c.graph, c.plan(activation_bits))
                ctx.log.debug("%s: %s has KL %.3g, softened %.3g", self.name, c.told, s.kl, s.soft)
                ctx.progress(self.name, len(scores), len(drafts))
            return scores[c.told]

        return decide(drafts, score), tuple(Tried(name, s.kl, s.soft) for name, s in scores.items())

    def _widths(self, ctx: PassContext) -> tuple[int, ...]:
        if foreign := sorted(set(self.budgets) - set(_METRICS)):
            raise ConfigError(f"{self.name}: no metric '{foreign[0]}' to bound; there are {', '.join(_METRICS)}")
        able = tuple(sorted(set(self.weight_bits) & ctx.capabilities.weight_bits))
        if not able:
            have = ", ".join(map(str, sorted(ctx.capabilities.weight_bits)))
            raise ConfigError(f"{self.name}: the target has weights of {have} bits, none of which is asked for")
        return able

    def _errors(self, top: Head, widths: tuple[int, ...], ctx: PassContext) -> ChannelErrors:
        data = ctx.facts.get(CalibrationData)
        data.check(top.graph)
        data = fitting_part(data, self.held_out) if self.scored_by else data
        batches = top.batches(data, self.batch, self.samples)
        weights = round_layers(top, {layer.name: widths for layer in top.layers}, batches, ctx)
        spread = spread_of(top, ctx, self.batch, sum(map(samples_in, batches)))
        return channel_errors(top, weights, batches, spread, self.probes, ctx)


Measure = Callable[[Candidate], Score]
"""Compiles a candidate, and scores it on held-out data."""


def predicted(candidate: Candidate) -> float:
    """Its predicted error, nats per sample."""
    return candidate.solved.objective


def foremost_unless_beaten(drafts: Sequence[Candidate], score: Measure) -> Candidate:
    """The least predicted error, or the best of those that measure better by more than noise.

    Among what an integer program finds within one budget, predicted errors tell candidates apart with less noise than
    a few hundred held-out samples do; these find out where the prediction fails.
    """
    foremost = min(drafts, key=predicted)
    better = [c for c in drafts if score(c).surely_below(score(foremost))]
    return min(better, key=lambda c: score(c).soft, default=foremost)


def least_measured(drafts: Sequence[Candidate], score: Measure) -> Candidate:
    """Bits by layer, or the best of the others if that is better; in the own order of channels only the best's like."""
    split = [c for c in drafts if c.name != BY_LAYER]
    best = min((c for c in split if c.rearranged == split[-1].rearranged), key=lambda c: score(c).soft)
    best = min((c for c in split if c.name == best.name), key=lambda c: score(c).soft)
    for plain in (c for c in drafts if c.name == BY_LAYER):
        if score(best).soft > score(plain).soft:
            best = plain
    return best


def _order(graph: Graph, found: ChannelGroups, errors: ChannelErrors) -> dict[int, int]:
    """Channels of every free class by what they lose at the fewest bits, the sum over the layers that make them."""
    made_by = producers(graph)
    total: defaultdict[int, float] = defaultdict(float)
    for name, table in errors.items():
        label = found.labels.get(name)
        if label is None or label.channels.size != table.shape[1] or not label.only(channel_axis(made_by[name])):
            continue
        for channel, error in zip(label.channels.reshape(-1).tolist(), table[0].tolist(), strict=True):
            total[channel] += error
    order: dict[int, int] = {}
    for c in found.free:
        by_error = sorted(c.channels, key=lambda channel: total[channel])
        order |= dict(zip(c.channels, by_error, strict=True))
    return order


def _moved(graph: Graph, found: ChannelGroups, order: Mapping[int, int], errors: ChannelErrors) -> ChannelErrors:
    """``errors`` once channels have taken the seats that ``order`` gives them."""
    made_by = producers(graph)
    sources = {name: arriving(found, order, made_by[name].result) for name in errors}
    return {n: table if (rows := sources[n]) is None else table[:, rows] for n, table in errors.items()}
