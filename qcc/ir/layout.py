"""Grids that are not the same for all codes of a tensor: shared exponents by block, widths by channel.

Neither changes what arithmetic sees: codes stay plain integers. They narrow which codes a grid holds, so
that fewer bits store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError

Array = NDArray[Any]

_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Blocks:
    """Block floating point: code = mantissa * 2**exponent, the exponent shared by a block of codes.

    A block is ``size`` consecutive indices of axis 1 (input channels of a weight [O, C, ...]), the last one what
    is left, at one index of every other axis. Exponents have ``exponent_bits`` bits, and go no further than
    codes of a byte allow.
    """

    size: int
    exponent_bits: int

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.exponent_bits <= 3:
            raise VerifyError(f"blocks have at least 1 code and exponents of 1 to 3 bits, not {self}")

    def top(self, bits: int) -> int:
        """The largest exponent of mantissas of ``bits`` bits."""
        return min((1 << self.exponent_bits) - 1, _BYTE - bits)

    def count(self, shape: tuple[int, ...]) -> int:
        """Exponents of a tensor of ``shape``."""
        outer, channels, *rest = shape
        return outer * -(-channels // self.size) * int(np.prod(rest, dtype=int))

    def exponents(self, codes: Array, bits: int) -> Array:
        """The least exponent [O, blocks, ...] with which signed mantissas of ``bits`` bits span each block.

        Where ``codes`` lie on the grid, their exponents are these: a larger one that divides all codes of
        a block only stands for smaller mantissas.
        """
        starts = np.arange(0, codes.shape[1], self.size)
        high, low = (f.reduceat(codes, starts, axis=1) for f in (np.maximum, np.minimum))
        found = np.zeros(high.shape, np.int64)
        for exponent in range(self.top(bits)):
            limit = 1 << (bits - 1 + exponent)
            found += (high > limit - (1 << exponent)) | (low < -limit)
        return found

    def units(self, exponents: Array, channels: int) -> Array:
        """2**exponent of every code, from those of the blocks [O, blocks, ...]."""
        spread: Array = np.left_shift(1, np.repeat(exponents, self.size, axis=1)[:, :channels])
        return spread

    def nearest(self, codes: Array, bits: int) -> Array:
        """``codes`` [O, C, ...], real or integer, moved to the nearest of the grid, block by block."""
        units = self.units(self.exponents(np.rint(codes), bits), codes.shape[1])
        limit = 1 << (bits - 1)
        found: Array = np.clip(np.rint(codes / units), -limit, limit - 1) * units
        return found

    def __str__(self) -> str:
        return f"{self.size}^{self.exponent_bits}"


@dataclass(frozen=True, slots=True)
class Widths:
    """Precision groups: the indices of ``axis`` fall into runs of (count, bits), all of one scale per index."""

    axis: int
    runs: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        if self.axis < 0 or not self.runs or any(n < 1 or not 2 <= b <= _BYTE for n, b in self.runs):
            raise VerifyError(f"precision groups have at least 1 channel and 2 to 8 bits, not {self}")

    @classmethod
    def of(cls, axis: int, bits: Array) -> Widths:
        """The runs of equal ``bits``, given index by index."""
        edges = np.flatnonzero(np.diff(bits)) + 1
        parts = np.split(np.asarray(bits), edges)
        return cls(axis, tuple((len(p), int(p[0])) for p in parts))

    @property
    def size(self) -> int:
        """Indices of all runs."""
        return sum(n for n, _ in self.runs)

    def per_index(self) -> Array:
        """The bits of every index of the axis."""
        return np.repeat([b for _, b in self.runs], [n for n, _ in self.runs])

    def along(self, rank: int) -> Array:
        """The bits of every index, shaped to broadcast against a tensor of ``rank`` dimensions."""
        return self.per_index().reshape([-1 if a == self.axis else 1 for a in range(rank)])

    def __str__(self) -> str:
        return f"{self.axis}/" + ",".join(f"{n}:{b}" for n, b in self.runs)
