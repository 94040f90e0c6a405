"""Grids of graph inputs: given, exact where the data lie on one, else fitted like any activation."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from qcc.ir.types import Dyadic, Quant

_LEVELS: Final = 256
_PROBE: Final = 1 << 16
_ON_GRID: Final = 1e-3
"""Distance from a grid, in steps, below which float32 data count as lying on it."""


class InputGrid(BaseModel):
    """An 8-bit grid that the user names: real = scale * (code - zero_point)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(gt=0)
    zero_point: int = 0
    signed: bool = False

    def quant(self) -> Quant:
        """Raises VerifyError when the zero point lies outside the grid or the scale outside float32."""
        return Quant(8, self.signed, (Dyadic.of(self.scale),), self.zero_point)


def exact_grid(data: NDArray[Any]) -> Quant | None:
    """The unsigned 8-bit grid that all of ``data`` lie on, if there is one.

    Codes of sensors and images that went through one affine map do: integers 0..255, these
    divided by 255, signed codes less a zero point. Room that the data leave is split between both
    ends, except that data without negative values start at code 0.
    """
    flat = data.reshape(-1)
    levels = np.unique(flat[:: max(1, flat.size // _PROBE)]).astype(np.float64)
    if not 2 <= len(levels) <= _LEVELS:
        return None
    step = _step(levels)
    low, high = min(float(flat.min()), 0.0), max(float(flat.max()), 0.0)
    below, above = round(-low / step), round(high / step)
    if below + above >= _LEVELS or not _multiples(flat, step):
        return None
    zero_point = below + (_LEVELS - 1 - below - above) // 2 if below else 0
    return Quant(8, False, (Dyadic.of(step),), zero_point)


def _step(levels: NDArray[np.float64]) -> float:
    """The distance of neighbouring levels: the least one first, then the slope over all of them."""
    least = np.diff(levels).min()
    codes = np.rint(levels / least)
    return float(codes @ levels / (codes @ codes)) if codes.any() else float(least)


def _multiples(flat: NDArray[Any], step: float) -> bool:
    for start in range(0, flat.size, 1 << 20):
        codes = flat[start : start + (1 << 20)].astype(np.float64) / step
        if np.abs(codes - np.rint(codes)).max() > _ON_GRID:
            return False
    return True
