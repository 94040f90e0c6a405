"""Widths for blocks of output channels: the best of every cost by dynamic programming, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Split:
    """The bits of every output channel, their sum, and the error that was measured for them."""

    bits: tuple[int, ...]
    total: int
    error: float


def splits(errors: Array, widths: Sequence[int], align: int, most: int = 24) -> list[Split]:
    """The splits that no other beats both in error and bits, from few bits to many; at most ``most`` of them.

    ``errors`` [widths, O] are those of each channel at each width; all channels of a block of ``align`` (the
    last may be smaller) take one width. What uniform widths take in bits is always among them, if unbeaten.
    """
    count = errors.shape[1]
    starts = list(range(0, count, align))
    sizes = [min(align, count - s) for s in starts]
    by_block = np.add.reduceat(errors, starts, axis=1)
    unit = gcd(*(n * b for n in set(sizes) for b in widths))
    limit = sum(n * max(widths) for n in sizes) // unit
    best = np.full(limit + 1, np.inf)
    best[0] = 0.0
    chosen = np.full((len(starts), limit + 1), -1)
    for block, size in enumerate(sizes):
        following = np.full(limit + 1, np.inf)
        for index, bits in enumerate(widths):
            step = size * bits // unit
            reached = np.concatenate([np.full(step, np.inf), best[: limit + 1 - step]]) + by_block[index, block]
            better = reached < following
            following[better], chosen[block, better] = reached[better], index
        best = following
    falling = np.minimum.accumulate(np.concatenate([[np.inf], best[:-1]]))
    front = [total for total in range(limit + 1) if best[total] < falling[total]]
    uniform = {count * b // unit for b in widths}
    step = max(1, -(-len(front) // most))
    kept = [t for i, t in enumerate(front) if i % step == 0 or t in uniform or i == len(front) - 1]
    return [_traced(t, best[t], chosen, sizes, widths, unit) for t in kept]


def _traced(total: int, error: float, chosen: Array, sizes: Sequence[int], widths: Sequence[int], unit: int) -> Split:
    """The split behind a total, from the last block to the first."""
    bits: list[int] = []
    left = total
    for block in range(len(sizes) - 1, -1, -1):
        width = widths[int(chosen[block, left])]
        bits[:0] = [width] * sizes[block]
        left -= sizes[block] * width // unit
    return Split(tuple(bits), total * unit, float(error))
