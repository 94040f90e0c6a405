"""Candidates of precision groups: one split of each layer's output channels, from errors and costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import BudgetError
from qcc.ir.graph import Graph
from qcc.ir.layout import Widths
from qcc_passes.assignment import Assignment, Choice, Group, assign
from qcc_passes.channel_errors import ChannelErrors
from qcc_passes.channel_splits import Split, splits
from qcc_passes.costs import CostModel
from qcc_passes.facts import BitPlan
from qcc_passes.layers import Layer

Array = NDArray[Any]

BY_LAYER: Final = "by layer"
"""The candidate whose layers have one width each."""
_LEAST, _MOST, _BLOCKS = 4, 16, 16
"""Channels of a block, where none are asked for: a power of two that makes about so many blocks."""


@dataclass(frozen=True, slots=True)
class GroupedLayer:
    """Runs of (channels, bits) of one layer, and the predicted nats per sample that rounding them costs."""

    layer: str
    runs: tuple[tuple[int, int], ...]
    error: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One split per layer of ``graph``; ``solved`` has what these use and the error that is predicted."""

    name: str
    graph: Graph
    rearranged: bool
    layers: tuple[GroupedLayer, ...]
    solved: Assignment

    @property
    def told(self) -> str:
        """Its name for people."""
        return f"{self.name}, rearranged" if self.rearranged else self.name

    def plan(self, activation_bits: Mapping[str, int]) -> BitPlan:
        """Its bits, as quantize reads them."""
        most = {each.layer: max(b for _, b in each.runs) for each in self.layers}
        widths = {each.layer: Widths(0, each.runs) for each in self.layers if len(each.runs) > 1}
        return BitPlan(most, activation_bits, widths)


@dataclass(frozen=True, slots=True)
class Drafter:
    """Makes candidates of the layers of ``costs``: blocks of ``align`` channels, or by their number, of ``widths``."""

    costs: CostModel
    widths: tuple[int, ...]
    align: int | None

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.costs.layers

    def within(
        self, graph: Graph, errors: ChannelErrors, bits: Mapping[str, int], *, rearranged: bool
    ) -> Iterator[Candidate]:
        """What the bytes of ``bits`` by layer buy: these themselves, their averages, and the best of all."""
        layers = [layer for layer in self.layers if layer.name in bits]
        plain = {layer.name: self._uniform(errors[layer.name], bits[layer.name]) for layer in layers}
        free = {layer.name: self._splits(errors[layer.name]) for layer in layers}
        options = {n: [s for s in some if s.total <= plain[n].total] for n, some in free.items()}
        averages = {n: min([*options[n], plain[n]], key=lambda s: s.error) for n in plain}
        budget = {"size": sum(self._choice(layer, plain[layer.name]).costs["size"] for layer in layers)}
        if not rearranged:
            yield self._solved(BY_LAYER, graph, layers, {n: [s] for n, s in plain.items()}, {}, rearranged)
        yield self._solved("averages by layer", graph, layers, {n: [s] for n, s in averages.items()}, {}, rearranged)
        every = {n: [*some, *([] if plain[n] in some else [plain[n]])] for n, some in free.items()}
        yield self._solved("by budget", graph, layers, every, budget, rearranged)

    def below(
        self,
        graph: Graph,
        errors: ChannelErrors,
        budgets: Mapping[str, float],
        kept: Mapping[str, int],
        *,
        rearranged: bool,
    ) -> Iterator[Candidate]:
        """What ``budgets`` buy: the widest single width for all layers but those of ``kept``, and the best of all."""
        held = {n: [self._uniform(errors[n], bits)] for n, bits in kept.items()}
        for bits in sorted(self.widths, reverse=True) if not rearranged else ():
            plain = {layer.name: [self._uniform(errors[layer.name], bits)] for layer in self.layers}
            with suppress(BudgetError):
                yield self._solved(BY_LAYER, graph, self.layers, plain | held, budgets, rearranged)
                break
        free = {layer.name: self._splits(errors[layer.name]) for layer in self.layers}
        yield self._solved("by budget", graph, self.layers, free | held, budgets, rearranged)

    def _splits(self, table: Array) -> list[Split]:
        return splits(table, self.widths, self.align or _block(table.shape[1]))

    def _uniform(self, table: Array, bits: int) -> Split:
        """One width for all channels; nothing is predicted for one that was not measured."""
        count = table.shape[1]
        error = float(table[self.widths.index(bits)].sum()) if bits in self.widths else 0.0
        return Split((bits,) * count, bits * count, error)

    def _solved(
        self,
        name: str,
        graph: Graph,
        layers: Sequence[Layer],
        options: Mapping[str, Sequence[Split]],
        budgets: Mapping[str, float],
        rearranged: bool,
    ) -> Candidate:
        """The least predicted error among ``options`` within ``budgets``. Raises BudgetError."""
        groups = [
            Group(layer.name, tuple(self._choice(layer, split) for split in options[layer.name])) for layer in layers
        ]
        solved = assign(groups, budgets)
        picked = [(g.name, options[g.name][pick]) for g, pick in zip(groups, solved.picks, strict=True)]
        chosen = tuple(GroupedLayer(n, Widths.of(0, np.array(s.bits)).runs, s.error) for n, s in picked)
        return Candidate(name, graph, rearranged, chosen, solved)

    def _choice(self, layer: Layer, split: Split) -> Choice:
        """One split as the integer program has it."""
        widths = Widths.of(0, np.array(split.bits))
        most = max(split.bits)
        size, average = self.costs.stored(layer, widths if len(widths.runs) > 1 else most)
        share = layer.parameters / sum(each.parameters for each in self.layers)
        bops = layer.macs * split.total / len(split.bits) * 8
        return Choice(most, 8, split.error, {"bits": share * average, "size": size, "bops": bops})


def _block(channels: int) -> int:
    """Channels of a block of a layer of so many."""
    power = max((channels // _BLOCKS).bit_length() - 1, 0)
    return min(max(1 << power, _LEAST), _MOST)
