"""Rules that turn the distribution of a value into its quantization grid.

Every grid is unsigned, represents the real 0 exactly, and has zero point 0 where nothing is negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from qcc.ir.types import Dyadic, Quant
from qcc_passes.histogram import Histogram

Array = NDArray[np.float64]

ObserverName = Literal["mse", "minmax", "percentile", "entropy"]

_TINY: Final = 1e-30
"""A range narrower than this is noise around zero: its scale could leave float32."""


class Observer(Protocol):
    """A rule that picks a grid."""

    def choose(self, histogram: Histogram, bits: int) -> Quant:
        """The ``bits``-wide unsigned grid for values distributed as ``histogram``."""


def affine(low: float, high: float, bits: int) -> Quant:
    """The unsigned grid that spans [low, high] and 0, its zero point the integer nearest to where 0 falls."""
    low, high = min(low, 0.0), max(high, 0.0)
    qmax = (1 << bits) - 1
    span = high - low
    if span < _TINY:
        return Quant(bits, False, (Dyadic(1, 0),))
    scale = Dyadic.of(span / qmax)
    zero_point = min(max(round(-low / float(scale)), 0), qmax)
    return Quant(bits, False, (scale,), zero_point)


@dataclass(frozen=True, slots=True)
class MinMax:
    """Everything seen fits."""

    def choose(self, histogram: Histogram, bits: int) -> Quant:
        """The grid from the lowest to the highest value."""
        return affine(histogram.low, histogram.high, bits)


@dataclass(frozen=True, slots=True)
class Percentile:
    """Clip ``100 - percent`` per cent of the samples, half of it at either end of a two-sided distribution."""

    percent: float = 99.99

    def choose(self, histogram: Histogram, bits: int) -> Quant:
        """The grid between the two quantiles."""
        centres, counts = _with_zeros(histogram)
        cut = (1 - self.percent / 100) * counts.sum() / (2 if histogram.low < 0 < histogram.high else 1)
        below = np.cumsum(counts)
        low = centres[np.searchsorted(below, cut, side="right").clip(max=len(centres) - 1)]
        high = centres[np.searchsorted(below, below[-1] - cut)]
        half = histogram.width / 2
        return affine(max(low - half, histogram.low), min(high + half, histogram.high), bits)


@dataclass(frozen=True, slots=True)
class Entropy:
    """Clip both sides at the magnitude that loses least information.

    The Kullback-Leibler divergence between the clipped distribution of magnitudes and its
    quantized form is least there: S. Migacz, "8-bit inference with TensorRT", GTC 2017.
    """

    bins: int = 2048
    steps: int = 128

    def choose(self, histogram: Histogram, bits: int) -> Quant:
        """The grid up to the best magnitude, on either side no further than values go."""
        if not len(histogram.counts):
            return affine(histogram.low, histogram.high, bits)
        levels = 1 << (bits - 1 if histogram.low < 0 else bits)
        magnitude = np.abs(histogram.centres)
        top = float(magnitude.max())
        index = np.minimum(magnitude * (self.bins / top), self.bins - 1).astype(np.int64)
        density = np.bincount(index, histogram.counts, self.bins)
        candidates = np.unique(np.linspace(min(levels, self.bins), self.bins, self.steps).astype(int))
        losses = [_divergence(density, int(stop), levels) for stop in candidates]
        limit = candidates[int(np.argmin(losses))] * top / self.bins
        return affine(max(histogram.low, -limit), min(histogram.high, limit), bits)


def _divergence(density: NDArray[Any], stop: int, levels: int) -> float:
    """KL(P || Q): P the bins below ``stop`` with the clipped mass in the last, Q their merger into ``levels``."""
    p = density[:stop].copy()
    q_source = p.copy()
    p[-1] += density[stop:].sum()
    group = np.arange(stop) * levels // stop
    filled = q_source > 0
    mass = np.bincount(group, q_source, levels)
    members = np.bincount(group, filled, levels)
    q = np.where(filled, mass[group] / np.maximum(members[group], 1), 0.0)
    if not q.sum():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    both = p > 0
    return float(np.sum(p[both] * np.log(p[both] / np.maximum(q[both], 1e-12))))


@dataclass(frozen=True, slots=True)
class MeanSquare:
    """Least expected squared quantization error, the two ends of the range searched separately.

    A coarse search over both ends uses the error of a uniform grid, step**2 / 12, plus the clipped
    second moments; a fine one around its best rounds every bin as the grid would.
    """

    coarse: int = 48
    fine: int = 9
    rounds: int = 3
    deepest: float = 1 / 64

    def choose(self, histogram: Histogram, bits: int) -> Quant:
        """The grid with the least error."""
        low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
        if high - low < _TINY or not len(histogram.counts):
            return affine(low, high, bits)
        low, high = self._coarse(histogram, low, high, bits)
        spread = self.deepest ** (1 / (self.coarse - 1))
        for _ in range(self.rounds):
            low, high = self._fine(histogram, low, high, bits, spread)
            spread **= 2 / (self.fine - 1)
        return affine(low, high, bits)

    def _coarse(self, h: Histogram, low: float, high: float, bits: int) -> tuple[float, float]:
        fractions = np.geomspace(1.0, self.deepest, self.coarse)
        lows = low * fractions if low < 0 else np.zeros(1)
        highs = high * fractions if high > 0 else np.zeros(1)
        step = (highs[None, :] - lows[:, None]) / ((1 << bits) - 1)
        clipped_low, count_low = _clipped(-h.centres[::-1], h.counts[::-1], -lows)
        clipped_high, count_high = _clipped(h.centres, h.counts, highs)
        inside = h.counts.sum() - count_low[:, None] - count_high[None, :]
        error = clipped_low[:, None] + clipped_high[None, :] + step**2 / 12 * inside
        i, j = np.unravel_index(int(np.argmin(error)), error.shape)
        return float(lows[i]), float(highs[j])

    def _fine(self, h: Histogram, low: float, high: float, bits: int, spread: float) -> tuple[float, float]:
        factors = spread ** np.linspace(-1, 1, self.fine)
        highs = [min(high * f, max(h.high, 0.0)) for f in factors] if high > 0 else [high]
        high = min(highs, key=lambda end: grid_error(h, affine(low, end, bits)))
        lows = [max(low * f, min(h.low, 0.0)) for f in factors] if low < 0 else [low]
        low = min(lows, key=lambda end: grid_error(h, affine(end, high, bits)))
        return low, high


def grid_error(h: Histogram, quant: Quant) -> float:
    """Sum of squared errors that ``quant`` makes on the samples of ``h``."""
    scale = float(quant.scale[0])
    codes = np.rint(h.centres / scale).clip(quant.qmin - quant.zero_point, quant.qmax - quant.zero_point)
    return float(h.counts @ (h.centres - codes * scale) ** 2)


def _clipped(centres: Array, counts: Array, ends: Array) -> tuple[Array, Array]:
    """For each end: the sum of (x - end)**2 over the samples x beyond it, and how many they are."""
    moments = [np.append(np.cumsum((counts * centres**k)[::-1])[::-1], 0.0) for k in range(3)]
    at = np.searchsorted(centres, ends, side="right")
    n, first, second = (m[at] for m in moments)
    return np.maximum(second - 2 * ends * first + ends**2 * n, 0.0), n


def _with_zeros(h: Histogram) -> tuple[Array, Array]:
    """Bin centres and counts with the exact zeros put in their place."""
    at = int(np.searchsorted(h.centres, 0.0))
    return np.insert(h.centres, at, 0.0), np.insert(h.counts, at, h.zeros)


def make_observer(name: ObserverName, percentile: float = 99.99) -> Observer:
    """The observer called ``name``; ``percentile`` is used by that one alone."""
    made: dict[str, Observer] = {
        "mse": MeanSquare(),
        "minmax": MinMax(),
        "percentile": Percentile(percentile),
        "entropy": Entropy(),
    }
    return made[name]


OBSERVERS: Final = get_args(ObserverName)
