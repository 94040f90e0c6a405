"""The analysis ``channel-groups``: which channels may change seats, and which axes share their order.

Every real activation gets a label (which channel each element belongs to), carried forward through
the operations. Channels that an elementwise operation combines are one channel, so the connected
components of that relation are the units that move. Units that occur at the same axes, in the same
number and within the same groups, form a class: permuting one changes nothing but the order of
weights. A unit is pinned where the outside world sees it, or an operation depends on its position.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np

from qcc.ir.graph import Graph, Value
from qcc_passes.channel_labels import Ints, Label
from qcc_passes.channel_rules import carry
from qcc_passes.channel_tracker import Tracker

_Places = tuple[tuple[str, tuple[int, ...]], ...]
_Groups = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class ChannelClass:
    """Channels that may be permuted among themselves, or are pinned.

    ``channels`` are in the order of their seats; ``axes`` the axes that carry them, as (value name,
    axes of the value); ``pinned`` holds the reasons why they may not move, none where they may.
    """

    channels: tuple[int, ...]
    axes: tuple[tuple[str, tuple[int, ...]], ...]
    pinned: tuple[str, ...]

    @property
    def free(self) -> bool:
        """Whether an order can be chosen: nothing pins the channels, and there are two of them."""
        return not self.pinned and len(self.channels) > 1

    def __str__(self) -> str:
        count = len(self.channels)
        state = f"pinned: {'; '.join(self.pinned)}" if self.pinned else "free" if self.free else "alone"
        places = ", ".join(f"%{name}[{', '.join(map(str, axes))}]" for name, axes in self.axes)
        return f"{count} channel{'s' if count > 1 else ''}, {state}\n    {places}"


@dataclass(frozen=True, slots=True, eq=False)
class ChannelGroups:
    """The classes of a graph, and the label of every value whose order may matter, by value name."""

    classes: tuple[ChannelClass, ...]
    labels: Mapping[str, Label]

    @property
    def free(self) -> tuple[ChannelClass, ...]:
        """The classes for which an order can be chosen."""
        return tuple(c for c in self.classes if c.free)

    def describe(self) -> str:
        """A text for people: each class with what pins it and the axes that carry it (value, axis)."""
        moving = sum(len(c.channels) for c in self.free)
        total = sum(len(c.channels) for c in self.classes)
        head = f"{len(self.classes)} classes, {len(self.free)} of them free: {moving} of {total} channels"
        return "\n".join((head, *(f"  {i}: {c}" for i, c in enumerate(self.classes)), ""))


def channel_groups(graph: Graph) -> ChannelGroups:
    """The classes of a FLOAT or QUANTIZED ``graph`` (an analysis). Operations it does not know pin their operands."""
    split: set[str] = set()
    while True:
        tracker = _track(graph, split)
        root = _roots(tracker)
        labels = {n: Label(root[label.channels], label.lanes) for n, label in tracker.labels.items()}
        repeating = [name for name, label in labels.items() if _repeats(label)]
        joins = {o.result.name for o in graph.ops if o.kind == "concat"} & set(repeating) - split
        if not joins:
            break
        split |= joins
    pins: dict[int, set[str]] = defaultdict(set)
    for channel, reason in tracker.pins.items():
        pins[int(root[channel])].add(reason)
    for name in repeating:
        for channel in np.unique(labels[name].channels).tolist():
            pins[channel].add(f"%{name} holds one channel several times")
    return ChannelGroups(_classes(tracker, root, labels, pins), labels)


def _track(graph: Graph, split: set[str]) -> Tracker:
    tracker = Tracker(graph, split)
    for v in graph.inputs:
        if v.type.rank > 1:
            label = Label.along(tracker.fresh(v.type.shape[1]), v.type.rank, 1)
            tracker.labels[v.name] = label
            tracker.pin(label, f"%{v.name} is an input")
    for o in graph.ops:
        carry(tracker, o)
    for v in graph.outputs:
        tracker.pin(tracker.label(v), f"%{v.name} is an output")
    return tracker


def _roots(tracker: Tracker) -> Ints:
    """For every channel the least channel that is one with it."""
    root = np.arange(tracker.same.number_of_nodes(), dtype=np.int64)
    for component in nx.connected_components(tracker.same):
        root[list(component)] = min(component)
    return root


def keys(channels: Ints, label: Label) -> Ints:
    """One number per element, from its channel in ``channels`` and its lane in ``label``."""
    span = int(label.lanes.max(initial=0)) + 1
    return (channels * span + label.lanes).reshape(-1)


def _repeats(label: Label) -> bool:
    return len(np.unique(keys(label.channels, label))) < label.channels.size


def _classes(
    tracker: Tracker, root: Ints, labels: Mapping[str, Label], pins: Mapping[int, set[str]]
) -> tuple[ChannelClass, ...]:
    """Channels that occur at the same places, in the same groups, for the same reasons."""
    seats: dict[int, list[tuple[str, tuple[int, ...]]]] = {int(r): [] for r in np.unique(root)}
    for name, label in labels.items():
        order = np.lexsort((label.lanes.reshape(-1), label.channels.reshape(-1)))
        channels, starts = np.unique(label.channels.reshape(-1)[order], return_index=True)
        lanes = np.split(label.lanes.reshape(-1)[order], starts[1:])
        for channel, own in zip(channels.tolist(), lanes, strict=True):
            seats[channel].append((name, tuple(own.tolist())))
    groups: dict[int, set[tuple[str, int, int]]] = defaultdict(set)
    for channel, where in tracker.places.items():
        groups[int(root[channel])].update(where)
    members: dict[tuple[_Places, _Groups, tuple[str, ...]], list[int]] = defaultdict(list)
    for channel, places in seats.items():
        reasons = tuple(sorted(pins.get(channel, ())))
        members[tuple(places), tuple(sorted(groups[channel])), reasons].append(channel)
    found = [
        ChannelClass(tuple(sorted(channels)), _carriers(places, labels), reasons)
        for (places, _, reasons), channels in members.items()
    ]
    return tuple(sorted(found, key=lambda c: c.channels[0]))


def _carriers(places: _Places, labels: Mapping[str, Label]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, labels[name].axes) for name, _ in places)


def arriving(groups: ChannelGroups, order: Mapping[int, int], value: Value) -> Ints | None:
    """For each place of ``value``'s flattened label, whose element comes there; None where all stay.

    ``order`` says for a channel's seat which channel takes it; others stay.
    """
    label = groups.labels.get(value.name)
    if label is None or not order:
        return None
    distinct, back = np.unique(label.channels, return_inverse=True)
    taken = np.array([order.get(c, c) for c in distinct.tolist()], np.int64)
    if np.array_equal(taken, distinct):
        return None
    known = keys(label.channels, label)
    sorter = np.argsort(known, kind="stable")
    wanted = keys(taken[back].reshape(label.channels.shape), label)
    return sorter[np.searchsorted(known, wanted, sorter=sorter)]
