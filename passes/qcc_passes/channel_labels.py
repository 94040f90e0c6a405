"""Which channel every element of a value belongs to, and how data movement carries that along."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """The channel of each element of a value, as two int64 arrays of the value's rank.

    Their size is 1 along axes on which the channel does not depend. ``channels`` holds channel
    numbers; ``lanes`` tells apart the elements that one channel has, so that both together occur once.
    """

    channels: Ints
    lanes: Ints

    @staticmethod
    def along(channels: Ints, rank: int, axis: int, lanes: Ints | None = None) -> Label:
        """A label that varies along ``axis`` alone; ``lanes`` default to 0."""
        shape = tuple(-1 if a == axis else 1 for a in range(rank))
        return Label(channels.reshape(shape), (np.zeros_like(channels) if lanes is None else lanes).reshape(shape))

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes along which the channel varies."""
        return tuple(a for a, d in enumerate(self.channels.shape) if d > 1)

    def moved(self, move: Callable[[Ints], NDArray[Any]]) -> Label:
        """Both arrays after the same data movement."""
        return Label(move(self.channels), move(self.lanes))

    def of_rank(self, rank: int) -> Label:
        """With axes of size 1 in front, as numpy broadcasts."""
        return self.moved(lambda a: a.reshape((1,) * (rank - a.ndim) + a.shape))

    def only(self, axis: int) -> bool:
        """Whether the channel varies along no other axis."""
        return set(self.axes) <= {axis}

    def like(self, other: Label) -> bool:
        """Whether elements of one channel lie at the same places in both, lane by lane."""
        return self.channels.shape == other.channels.shape and bool(np.array_equal(self.lanes, other.lanes))


def reshaped(label: Label, old: Sequence[int], new: Sequence[int]) -> Label:
    """``label`` of a value of shape ``old`` after a reshape to ``new``; a symbolic batch counts as 1.

    Axes that merge or split together with a labelled one become labelled, a lane per element.
    """
    spread, shape = [1] * len(old), [1] * len(new)
    for was, now in _aligned([abs(d) for d in old], [abs(d) for d in new]):
        if any(label.channels.shape[a] > 1 for a in was):
            for a in was:
                spread[a] = abs(old[a])
            for a in now:
                shape[a] = abs(new[a])
    return _spread(label, spread).moved(lambda a: a.reshape(shape))


def _spread(label: Label, shape: Sequence[int]) -> Label:
    """``label`` stretched to ``shape``: a channel's elements along the new axes become lanes."""
    extra = [d if label.channels.shape[a] == 1 else 1 for a, d in enumerate(shape)]
    count = math.prod(extra)
    lanes = label.lanes * count + np.arange(count, dtype=np.int64).reshape(extra)
    return Label(np.broadcast_to(label.channels, shape), np.broadcast_to(lanes, shape))


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of axes of ``old`` and ``new`` that hold equally many elements."""
    runs: list[tuple[range, range]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        before = after = 1
        if i < len(old):
            before, i = old[i], i + 1
        if j < len(new):
            after, j = new[j], j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        runs.append((range(first, i), range(second, j)))
    return runs


def permuted(array: NDArray[Any], label: Label, source: Ints) -> NDArray[Any]:
    """``array``, which broadcasts to a value with ``label``, when its elements move.

    ``source`` [channels] says, for each place of the flattened label, whose element comes there.
    """
    rank = label.channels.ndim
    whole = array.reshape((1,) * (rank - array.ndim) + array.shape)
    axes = label.axes
    if all(whole.shape[a] == 1 for a in axes):
        return array
    shape = tuple(label.channels.shape[a] if a in axes else d for a, d in enumerate(whole.shape))
    rest = tuple(a for a in range(rank) if a not in axes)
    front = np.broadcast_to(whole, shape).transpose(axes + rest)
    taken = front.reshape(len(source), -1)[source].reshape(front.shape)
    return taken.transpose(np.argsort(axes + rest))
