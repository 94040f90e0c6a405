"""The constants of a dyadic requantization, folded and scaled for the vector epilogue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.types import DTYPES
from qcc_targets.cpu.kernel import Site

WORD: Final = 32
"""The shift that the epilogue aims at: the result is then the upper half of a 64-bit lane."""

_INT64: Final = 1 << 64


@dataclass(frozen=True, slots=True)
class Requant:
    """y = clamp((acc*m + r*mr + c) >> shift, low, high) per output channel, over *raw* accumulators.

    The accumulator is a sum over raw codes; the operands' zero points are folded into ``c``, which
    is right where padding holds the zero point. Where the numbers allow, everything is scaled to
    ``shift`` 32. ``floor`` and ``ceiling`` bound the raw accumulator of each channel.
    """

    m: NDArray[np.int64]
    c: NDArray[np.int64]
    mr: NDArray[np.int64] | None
    shift: int
    low: int
    high: int
    dtype: str
    floor: NDArray[np.int64]
    ceiling: NDArray[np.int64]

    @property
    def channels(self) -> int:
        return len(self.m)

    @property
    def start(self) -> NDArray[np.int64]:
        """What to start each accumulator from to keep it nonnegative."""
        return np.maximum(0, -self.floor)

    @property
    def narrow_products(self) -> bool:
        """Whether products of accumulators that begin at ``start`` are unsigned and below 2**52."""
        if self.m.min(initial=0) < 0:
            return False
        reach = (self.ceiling + self.start).astype(object) * self.m.astype(object)
        return bool(max(reach, default=0) < 1 << 52)

    def started(self) -> Requant:
        """The same function of accumulators that begin at ``start`` instead of zero."""
        c = self.c.astype(object) - self.start.astype(object) * self.m.astype(object)
        return Requant(
            self.m, _wrap(c), self.mr, self.shift, self.low, self.high, self.dtype,
            self.floor + self.start, self.ceiling + self.start,
        )  # fmt: skip


def fold(
    site: Site,
    weights: NDArray[np.int64],
    *,
    residual: int | None = None,
    wide_residual: bool = False,
    centred: bool = False,
    offset: int = 0,
) -> Requant | None:
    """The requantization of a contraction with ``weights`` [O, …], which are less their zero point.

    ``residual`` is the slot of the residual operand, unsigned codes; its multiplier follows it, and may
    grow when scaled: to 32 bits, or where ``wide_residual`` as long as products fit 52. With
    ``centred``, accumulators are sums over codes less the zero point instead, else over codes less
    ``offset``. None where an accumulator
    may leave int32, or a result int32 before the clamp.
    """
    channels = len(weights)
    rows = weights.reshape(channels, -1)
    low, high = _codes(site)
    zero_point = site.zero_point(0)
    m, c = _vector(site, 2, channels), _vector(site, 3, channels)
    if centred:
        floor, ceiling = _bounds(rows, low - zero_point, high - zero_point)
    else:
        floor, ceiling = _bounds(rows, low - offset, high - offset)
        c = c - (zero_point - offset) * rows.sum(axis=1) * m
    mr = None if residual is None else _vector(site, residual + 1, channels)
    most = 0 if residual is None else int(np.iinfo(DTYPES[site.op.operands[residual].type.dtype]).max)
    return scaled(site, m, c, mr, floor, ceiling, most, 52 - most.bit_length() if wide_residual else 32)


def scaled(
    site: Site, m: Any, c: Any, mr: Any, floor: Any, ceiling: Any, residual: int = 0, residual_bits: int = 32
) -> Requant | None:
    """A ``Requant`` from exact (object) vectors, or None where its numbers do not fit the lanes.

    ``residual`` is the greatest code that ``mr``, if any, multiplies; ``mr`` may grow to ``residual_bits``.
    """
    if max(np.abs(floor).max(), np.abs(ceiling).max()) >= 1 << 31:
        return None
    total = np.maximum(np.abs(floor * m + c), np.abs(ceiling * m + c))
    if mr is not None:
        total = total + residual * np.abs(mr)
    reach, shift = int(total.max()), site.op.int_attr("shift")
    if reach >> shift >= 1 << 31 or reach >= 1 << 63:
        return None
    up = WORD - shift
    if mr is not None and mr.min() < 0:
        return None
    if int(np.abs(m).max()) << up < 1 << 31 and (mr is None or int(mr.max()) << up < 1 << residual_bits):
        shift, m, c, mr = WORD, m << up, c << up, None if mr is None else mr << up
    return Requant(
        _wrap(m), _wrap(c), None if mr is None else _wrap(mr), shift,
        site.op.int_attr("qmin"), site.op.int_attr("qmax"), site.op.result.type.dtype,
        floor.astype(np.int64), ceiling.astype(np.int64),
    )  # fmt: skip


def _vector(site: Site, slot: int, channels: int) -> NDArray[Any]:
    """A constant of one entry per channel, or one for all, as exact integers."""
    return np.broadcast_to(site.array(slot).reshape(-1), channels).astype(object)


def _codes(site: Site) -> tuple[int, int]:
    """The least and greatest code of the first operand: of its grid, or of its type where that is 8 bits wide."""
    type_ = site.op.operands[0].type
    info = np.iinfo(DTYPES[type_.dtype])
    if type_.quant is None or info.bits == 8:
        return int(info.min), int(info.max)
    return type_.quant.qmin, type_.quant.qmax


def _bounds(rows: NDArray[np.int64], low: int, high: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """The least and greatest sum of each row of weights over codes in [low, high], as exact integers."""
    positive = np.maximum(rows, 0).sum(axis=1).astype(object)
    negative = np.minimum(rows, 0).sum(axis=1).astype(object)
    return positive * low + negative * high, positive * high + negative * low


def _wrap(values: NDArray[Any]) -> NDArray[np.int64]:
    """Exact integers modulo 2**64, as int64."""
    return np.array([(int(v) + (_INT64 >> 1)) % _INT64 - (_INT64 >> 1) for v in values], np.int64)
