"""Exact arithmetic of requantization: multipliers, offsets, shifts and clamps from rational scales.

y = clamp((sum of terms * m + c) >> shift), with every m = round(ratio * 2**shift) below 2**31 and the
shift the largest up to 32 that allows it. Everything here is rational; nothing is rounded twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.types import Quant

MAX_SHIFT: Final = 32
_M_LIMIT: Final = 1 << 31
_C_LIMIT: Final = 1 << 63
_HALF: Final = Fraction(1, 2)


def half_up(x: Fraction) -> int:
    """The integer nearest to ``x``, ties toward plus infinity."""
    return math.floor(x + _HALF)


def scales(quant: Quant) -> list[Fraction]:
    """The exact scales of ``quant``: one, or one per channel."""
    return [s.fraction for s in quant.scale]


def scale(quant: Quant) -> Fraction:
    """The one exact scale of a per-tensor grid."""
    (only,) = quant.scale
    return only.fraction


@dataclass(frozen=True, slots=True)
class Requant:
    """The end of one operation, on the grid ``target``: ``shift`` and the clamp [``qmin``, ``qmax``]."""

    target: Quant
    shift: int
    qmin: int
    qmax: int

    @classmethod
    def of(
        cls, where: str, target: Quant, ratios: Iterable[Fraction], lo: float = -math.inf, hi: float = math.inf
    ) -> Requant:
        """For terms whose units are ``ratios`` of the target's step; the reals ``lo`` and ``hi`` clamp besides.

        Raises PassError, naming ``where``, when a ratio is too large for a 31-bit multiplier.
        """
        largest = max(map(abs, ratios))
        shift = next((s for s in range(MAX_SHIFT, 0, -1) if half_up(largest * (1 << s)) < _M_LIMIT), 0)
        if not shift:
            raise PassError(
                f"{where}: one step of its operand is {float(largest):.3g} steps of its result, more than a 31-bit "
                "multiplier holds; calibrate on data that reach the result's real range"
            )
        return cls(target, shift, _bound(lo, target, target.qmin), _bound(hi, target, target.qmax))

    @property
    def attrs(self) -> dict[str, int]:
        return {"shift": self.shift, "qmin": self.qmin, "qmax": self.qmax}

    def multiplier(self, ratio: Fraction) -> int:
        return half_up(ratio * (1 << self.shift))

    def multipliers(self, ratios: Sequence[Fraction]) -> NDArray[np.int32]:
        """One multiplier per ratio."""
        return np.array([self.multiplier(r) for r in ratios], np.int32)

    def offset(self, where: str, real: Fraction = Fraction(0), cancel: int = 0) -> int:
        """``c``: the ``real`` addend, the zero point and the rounding half, less ``cancel`` (raw zero points times m).

        Raises PassError when it leaves int64.
        """
        zero = self.target.zero_point << self.shift
        c = half_up(real / scale(self.target) * (1 << self.shift)) + zero + (1 << (self.shift - 1)) - cancel
        if not -_C_LIMIT <= c < _C_LIMIT:
            raise PassError(f"{where}: a constant of {float(real):.3g} is too far off its result's grid; recalibrate")
        return c


def _bound(real: float, target: Quant, default: int) -> int:
    """The code of the clamp ``real``; where it is infinite, or off the grid, the grid's own end."""
    if math.isinf(real):
        return default
    code = half_up(Fraction(real) / scale(target)) + target.zero_point
    return min(max(code, target.qmin), target.qmax)
