"""Precision groups: blocks of a layer's output channels with bits of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Stage, producers
from qcc.ir.layout import Widths
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.assignment import Assignment, Choice, Group, assign
from qcc_passes.channel_errors import ChannelErrors, channel_errors
from qcc_passes.channel_groups import ChannelGroups, arriving, channel_groups
from qcc_passes.channel_orders import reordered
from qcc_passes.channel_rules import channel_axis
from qcc_passes.channel_splits import Split, splits
from qcc_passes.facts import BitPlan
from qcc_passes.head import Head, head
from qcc_passes.layers import Layer
from qcc_passes.samples import samples_in
from qcc_passes.sensitivity import spread_of
from qcc_passes.variants import round_layers

Array = NDArray[Any]

_METRICS: Final = ("bits", "size", "bops")


@dataclass(frozen=True, slots=True)
class GroupedLayer:
    """Runs of (channels, bits) of one layer, and the predicted nats per sample that rounding them costs."""

    layer: str
    runs: tuple[tuple[int, int], ...]
    error: float


@dataclass(frozen=True, slots=True)
class PrecisionGroupsFound:
    """What the pass chose, what it uses of each metric, and by how much rearranging lowered the predicted error."""

    layers: tuple[GroupedLayer, ...]
    used: Mapping[str, float]
    error: float
    unsorted: float
    rearranged: bool

    def report(self) -> dict[str, Any]:
        """Plain data for a report."""
        return asdict(self)


class PrecisionGroups(Pass):
    """Give blocks of ``align`` output channels of every layer bits of their own, within budgets.

    What rounding each channel does to the outputs is measured at every width, on the calibration data. Channels
    are then rearranged so that those that need many bits are neighbours, where that lowers the predicted error.
    For each layer dynamic programming finds the best split of every cost. Where bits have been chosen by layer,
    each layer keeps its average; else an integer program chooses one split per layer: ``budgets`` bounds ``bits``
    (average per weight), ``size`` (bytes) and ``bops`` (multiply-accumulates times weight bits times 8, per
    sample), and the first and the last layer have ``ends`` bits.
    """

    name: ClassVar[str] = "precision-groups"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (BitPlan, PrecisionGroupsFound)

    budgets: dict[str, float] = Field(default_factory=dict)
    weight_bits: tuple[int, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)
    align: int = Field(default=16, ge=1, description="channels of a block: a multiple of the target's vectors")
    ends: int | None = Field(default=8, ge=2, le=8, description="bits of the first and last layer; null: free")
    rearrange: bool = True
    samples: int = Field(default=256, ge=1, description="calibration samples to use")
    batch: int = Field(default=16, ge=1, description="samples per pass, where the model leaves it open")
    probes: int = Field(default=4, ge=1, description="random cotangents per batch")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph, rearranged; the plan is put into ``ctx``. Raises ConfigError, BudgetError, PassError."""
        widths = self._widths(ctx)
        top = head(graph)
        known = None if self.budgets else ctx.facts.find(BitPlan)
        if known is None and not self.budgets:
            raise ConfigError(f"{self.name}: give budgets, or run a pass that chooses bits by layer before it")
        errors = self._errors(top, widths, ctx)
        plain, unsorted = self._solved(top, errors, widths, known)
        chosen, solved = plain, unsorted
        found = channel_groups(graph)
        order = _order(graph, found, errors)
        rearranged = False
        if self.rearrange and order:
            moved = _moved(graph, found, order, errors)
            sorted_, better = self._solved(top, moved, widths, known)
            if rearranged := better.objective < unsorted.objective:
                graph, chosen, solved = reordered(graph, found, order), sorted_, better
        layers = tuple(GroupedLayer(n, Widths.of(0, np.array(s.bits)).runs, s.error) for n, s in chosen.items())
        ctx.facts.put(PrecisionGroupsFound(layers, dict(solved.used), solved.objective, unsorted.objective, rearranged))
        grouped = {each.layer: Widths(0, each.runs) for each in layers}
        most = {name: max(b for _, b in w.runs) for name, w in grouped.items()}
        mixed = {name: w for name, w in grouped.items() if len(w.runs) > 1}
        ctx.facts.put(BitPlan(most, known.activation_bits if known else {}, mixed))
        said = "rearranged" if rearranged else "in their order"
        ctx.log.info("%s: %d of %d layers split, channels %s", self.name, len(mixed), len(layers), said)
        return graph

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
        batches = top.batches(data, self.batch, self.samples)
        weights = round_layers(top, {layer.name: widths for layer in top.layers}, batches, ctx)
        spread = spread_of(top, ctx, self.batch, sum(map(samples_in, batches)))
        return channel_errors(top, weights, batches, spread, self.probes, ctx)

    def _solved(
        self, top: Head, errors: ChannelErrors, widths: tuple[int, ...], known: BitPlan | None
    ) -> tuple[dict[str, Split], Assignment]:
        """The best split of every layer, within its own bits where these are ``known``, else within the budgets."""
        parameters = sum(layer.parameters for layer in top.layers)
        options: dict[str, list[Split]] = {}
        groups = []
        for layer in top.layers:
            options[layer.name] = self._options(layer, top, errors[layer.name], widths, known)
            choices = [_choice(layer, split, parameters) for split in options[layer.name]]
            groups.append(Group(layer.name, tuple(choices)))
        solved = assign(groups, self.budgets)
        return {g.name: options[g.name][pick] for g, pick in zip(groups, solved.picks, strict=True)}, solved

    def _options(
        self, layer: Layer, top: Head, table: Array, widths: tuple[int, ...], known: BitPlan | None
    ) -> list[Split]:
        """The splits that a layer may take."""
        count = table.shape[1]
        bits = known.weight_bits.get(layer.name) if known else None
        if known is None and layer.name in (top.layers[0].name, top.layers[-1].name):
            bits = self.ends
        if bits is None:
            return splits(table, widths, self.align)
        uniform = Split(
            (bits,) * count, bits * count, float(table[widths.index(bits)].sum()) if bits in widths else 0.0
        )
        if known is None or bits not in widths:
            return [uniform]
        return [min((s for s in splits(table, widths, self.align) if s.total <= uniform.total), key=lambda s: s.error)]


def _choice(layer: Layer, split: Split, parameters: int) -> Choice:
    """One split as the integer program has it."""
    share = split.total / len(split.bits)
    fan_in = layer.parameters // len(split.bits)
    size = sum(-(-n * fan_in * b // 8) for n, b in Widths.of(0, np.array(split.bits)).runs)
    costs = {"bits": layer.parameters * share / parameters, "size": float(size), "bops": layer.macs * share * 8}
    return Choice(max(split.bits), 8, split.error, costs)


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
