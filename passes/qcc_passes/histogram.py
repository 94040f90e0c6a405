"""A histogram that grows with its data: bins of one power-of-two width, doubled when the range outgrows them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

MAX_BINS: Final = 1 << 14
"""Upper bound of the number of bins; at least a quarter of it is in use once data has spread."""


@dataclass(slots=True)
class Histogram:
    """Counts (or weights) of a value's samples, and its exact extremes.

    Bin ``i`` of ``counts`` covers ``[first + i, first + i + 1) * 2**exponent``. Exact zeros, which
    a Relu makes in masses and every grid represents, are counted apart in ``zeros``. ``low`` and
    ``high`` are the extremes of all elements, sampled or not.
    """

    low: float = math.inf
    high: float = -math.inf
    zeros: float = 0
    exponent: int = 0
    first: int = 0
    counts: Array = field(default_factory=lambda: np.zeros(0))

    @classmethod
    def of(cls, samples: NDArray[Any]) -> Histogram:
        """The histogram of ``samples`` (any shape, finite reals)."""
        histogram = cls()
        histogram.add(samples)
        return histogram

    @property
    def centres(self) -> Array:
        """The middle of every bin."""
        middle: Array = np.ldexp(self.first + np.arange(len(self.counts)) + 0.5, self.exponent)
        return middle

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> float:
        return self.zeros + float(self.counts.sum())

    @property
    def mean_square(self) -> float:
        """The mean of the squared samples, to the width of a bin."""
        return float(self.counts @ np.square(self.centres)) / self.total if self.total else 0.0

    def widen(self, low: float, high: float) -> None:
        """Take the extremes of elements that are not sampled into account."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add(self, samples: NDArray[Any], weights: NDArray[Any] | None = None) -> None:
        """Count ``samples``, each once or as often as ``weights`` (of the same shape) says."""
        flat = np.asarray(samples, np.float64).ravel()
        if not flat.size:
            return
        self.widen(float(flat.min()), float(flat.max()))
        used = flat != 0
        occupied = flat[used]
        weight = None if weights is None else np.asarray(weights, np.float64).ravel()
        self.zeros += flat.size - occupied.size if weight is None else float(weight[~used].sum())
        if occupied.size:
            self._reserve(float(occupied.min()), float(occupied.max()))
            index = np.floor(np.ldexp(occupied, -self.exponent)).astype(np.int64) - self.first
            self.counts += np.bincount(index, None if weight is None else weight[used], len(self.counts))

    def merged(self, other: Histogram) -> Histogram:
        """The histogram of both sets of samples."""
        out = Histogram(self.low, self.high, self.zeros + other.zeros, self.exponent, self.first, self.counts.copy())
        out.widen(other.low, other.high)
        if len(other.counts):
            out._reserve(*other._bounds())
            # The narrower bins of `other` nest in the wider ones, so counts move whole.
            while other.exponent > out.exponent:
                out._halve()
            index = ((np.arange(len(other.counts)) + other.first) >> (out.exponent - other.exponent)) - out.first
            np.add.at(out.counts, index, other.counts)
        return out

    def _bounds(self) -> tuple[float, float]:
        """Reals inside the first and the last bin."""
        last = self.first + len(self.counts) - 1
        return math.ldexp(self.first + 0.5, self.exponent), math.ldexp(last + 0.5, self.exponent)

    def _reserve(self, low: float, high: float) -> None:
        """Let the bins cover ``low`` and ``high``, doubling their width as often as it takes."""
        if not len(self.counts):
            self.exponent = math.frexp(max(high - low, abs(high), abs(low)))[1] - MAX_BINS.bit_length() + 2
            self.first = math.floor(math.ldexp(low, -self.exponent))
            self.counts = np.zeros(1)
        while not self._fits(low, high):
            self._halve()
        start = min(self.first, math.floor(math.ldexp(low, -self.exponent)))
        stop = max(self.first + len(self.counts), math.floor(math.ldexp(high, -self.exponent)) + 1)
        self.counts = np.pad(self.counts, (self.first - start, stop - self.first - len(self.counts)))
        self.first = start

    def _fits(self, low: float, high: float) -> bool:
        start = min(self.first, math.floor(math.ldexp(low, -self.exponent)))
        stop = max(self.first + len(self.counts), math.floor(math.ldexp(high, -self.exponent)) + 1)
        return stop - start <= MAX_BINS

    def _halve(self) -> None:
        """Half the bins, each twice as wide."""
        odd = self.first & 1
        padded = np.pad(self.counts, (odd, (len(self.counts) + odd) & 1))
        self.counts = padded.reshape(-1, 2).sum(axis=1)
        self.first >>= 1
        self.exponent += 1
