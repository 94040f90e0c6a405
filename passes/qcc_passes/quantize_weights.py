"""Grids of weights: symmetric, per output channel or per tensor."""

from __future__ import annotations

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from qcc.ir.layout import Blocks, Widths
from qcc.ir.types import Dyadic, Quant

Array = NDArray[np.float64]

WeightRange = Literal["max", "mse"]
Granularity = Literal["channel", "tensor"]

_SHRINK: Final = np.linspace(1.0, 0.7, 31)
"""Fractions of the largest magnitude that the ``mse`` range search tries."""
_ON_GRID: Final = 1e-4
"""Distance from a grid, in steps, below which weights count as lying on it."""


def weight_quant(
    weights: NDArray[Any],
    bits: int,
    granularity: Granularity,
    search: WeightRange,
    layout: Blocks | Widths | None = None,
) -> Quant:
    """The symmetric signed grid of ``weights``, whose axis 0 is the output channel.

    ``max`` spans the largest magnitude and ``mse`` clips where the squared error is least. Weights
    that already lie on a grid of so many bits keep it, and lose nothing. ``layout`` gives blocks exponents,
    whose largest spans the largest magnitude, or output channels their own widths.
    """
    if isinstance(layout, Widths):
        parts = np.split(weights, np.cumsum([n for n, _ in layout.runs])[:-1])
        each = [weight_quant(p, b, "channel", search) for p, (_, b) in zip(parts, layout.runs, strict=True)]
        return Quant(bits, True, tuple(s for q in each for s in q.scale), axis=0, layout=layout)
    rows = weights.astype(np.float64).reshape(len(weights), -1)
    groups = rows if granularity == "channel" else rows.reshape(1, -1)
    qmax = (1 << (bits - 1)) - 1 << (layout.top(bits) if layout else 0)
    top = np.abs(groups).max(axis=1)
    used = top > 0
    step = np.ones(len(groups))
    if used.any():
        step[used] = top[used] / qmax if layout else _steps(groups[used], top[used], qmax, search)
        # A channel of zeros takes its step from the others: it must not stretch the range of multipliers.
        step[~used] = np.median(step[used])
    axis = 0 if granularity == "channel" else None
    return Quant(bits, True, tuple(map(Dyadic.of, step)), axis=axis, layout=layout)


def _steps(groups: Array, top: Array, qmax: int, search: WeightRange) -> Array:
    if (shared := _shared_grid(groups, top, qmax)) is not None:
        return shared
    step = top / qmax if search == "max" else _least_error(groups, top, qmax)
    for levels in range(qmax - 1, qmax // 2, -1):
        step = np.where(_on_grid(groups, top / levels), top / levels, step)
    return np.where(_on_grid(groups, top / qmax), top / qmax, step)


def _shared_grid(groups: Array, top: Array, qmax: int) -> Array | None:
    """The step of the one grid that all groups lie on, if there is one.

    Any coarser grid is part of one whose largest magnitude takes more than half of ``qmax`` levels.
    """
    for levels in range(qmax, qmax // 2, -1):
        step = np.full(len(groups), top.max() / levels)
        if _on_grid(groups[:1], step[:1]).all() and _on_grid(groups, step).all():
            return step
    return None


def _on_grid(groups: Array, step: Array) -> NDArray[np.bool_]:
    """Which groups are multiples of their step; a few elements of each rule most of them out."""
    near = _distance(groups[:, :16], step) < _ON_GRID
    near[near] = _distance(groups[near], step[near]) < _ON_GRID
    return near


def _distance(groups: Array, step: Array) -> Array:
    codes = groups / step[:, None]
    distance: Array = np.abs(codes - np.rint(codes)).max(axis=1)
    return distance


def _least_error(groups: Array, top: Array, qmax: int) -> Array:
    best, least = top / qmax, np.full(len(groups), np.inf)
    for fraction in _SHRINK:
        step = top * fraction / qmax
        codes = np.rint(groups / step[:, None]).clip(-qmax, qmax)
        error = np.square(codes * step[:, None] - groups).sum(axis=1)
        best, least = np.where(error < least, step, best), np.minimum(error, least)
    return best
