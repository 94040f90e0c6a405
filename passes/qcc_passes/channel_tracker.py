"""The bookkeeping of the ``channel-groups`` analysis: labels, channels that are one, and what holds them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

import networkx as nx
import numpy as np

from qcc.ir.graph import Graph, Op, Value
from qcc_passes.channel_labels import Ints, Label


class Tracker:
    """Labels of the values seen so far, and constraints on their channels.

    ``same`` connects channels that must move together, ``pins`` says why a channel may not move, and
    ``places`` where it has to stay: channels of different places cannot change seats. Results of the
    concatenations in ``split`` keep elements of one channel apart by operand.
    """

    def __init__(self, graph: Graph, split: Set[str]) -> None:
        self.labels: dict[str, Label] = {}
        self.same: nx.Graph[int] = nx.Graph()
        self.pins: dict[int, str] = {}
        self.places: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
        self.constants = {o.result.name for o in graph.ops if o.kind == "constant"}
        self.grids = {o.result.name: o.result.type.quant for o in graph.ops if o.kind == "constant"}
        self.split = split

    def fresh(self, count: int) -> Ints:
        """``count`` channels that nothing holds yet."""
        first = self.same.number_of_nodes()
        self.same.add_nodes_from(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def label(self, value: Value) -> Label | None:
        """The label of ``value``; None where its order is fixed, or it is a constant."""
        return self.labels.get(value.name)

    def pin(self, label: Label | None, reason: str) -> None:
        """Forbid the channels of ``label`` to move."""
        if label is not None:
            for channel in np.unique(label.channels).tolist():
                self.pins.setdefault(channel, reason)

    def hold(self, o: Op, reason: str) -> None:
        """Pin the channels of every operand of ``o``, whose result then has a fixed order."""
        for v in o.operands:
            self.pin(self.label(v), f"{o} {reason}")

    def confine(self, label: Label, place: str, groups: Ints) -> None:
        """Keep each element of ``label`` within its group; ``groups`` has the label's shape."""
        where = zip(label.channels.flat, label.lanes.flat, groups.flat, strict=True)
        for channel, lane, group in where:
            self.places[int(channel)].append((place, int(lane), int(group)))

    def join(self, o: Op, lead: Label, value: Value) -> None:
        """Give ``value``, which ``o`` combines element by element with ``lead``, the same order, or pin both."""
        if value.name in self.constants:
            if (grid := self.grids[value.name]) is not None and grid.axis is not None:
                self.pin(lead, f"{o} combines it with the per-channel grid of %{value.name}")
            return
        rank = lead.channels.ndim
        dims = (1,) * (rank - value.type.rank) + value.type.shape
        label = self.label(value)
        aligned = None if label is None else label.of_rank(rank)
        if all(dims[a] == 1 for a in lead.axes) and (aligned is None or not aligned.axes):
            return
        if aligned is not None and aligned.like(lead):
            pairs = zip(lead.channels.flat, aligned.channels.flat, strict=True)
            self.same.add_edges_from((int(a), int(b)) for a, b in pairs)
            return
        self.pin(lead, f"{o} combines it with %{value.name}, which has another order")
        self.pin(label, f"{o} combines %{value.name} with channels in another order")
