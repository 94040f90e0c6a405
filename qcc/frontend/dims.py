"""Integers that depend on the batch: what Shape yields when the batch is symbolic.

Shape tensors that hold such an integer are object arrays of ``int`` and ``Dim``, so numpy's own
indexing, concatenation and arithmetic carry them along exporters' Shape/Gather/Concat chains.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray


class UndecidedError(Exception):
    """A result differs between batch sizes in a way that no ``Dim`` expresses."""


@dataclass(frozen=True, slots=True)
class Dim:
    """``slope * N + offset``, N the batch size (at least 1) and ``slope`` not 0.

    Equality is that of the expressions; ``decide`` answers comparisons for every N at once.
    """

    slope: int
    offset: int = 0

    @staticmethod
    def of(slope: int, offset: int) -> Dim | int:
        """The same value as a plain ``int`` where the batch has cancelled out."""
        return Dim(slope, offset) if slope else offset

    def __add__(self, other: object) -> Dim | int:
        slope, offset = _parts(other)
        return Dim.of(self.slope + slope, self.offset + offset)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return Dim(-self.slope, -self.offset)

    def __sub__(self, other: object) -> Dim | int:
        slope, offset = _parts(other)
        return Dim.of(self.slope - slope, self.offset - offset)

    def __rsub__(self, other: object) -> Dim | int:
        return -self + other

    def __mul__(self, other: object) -> Dim | int:
        slope, factor = _parts(other)
        if slope:
            raise UndecidedError
        return Dim.of(self.slope * factor, self.offset * factor)

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Dim | int:
        slope, divisor = _parts(other)
        if slope and self.offset == divisor == 0 and self.slope % slope == 0:
            return self.slope // slope
        if slope or divisor == 0 or self.slope % divisor or self.offset % divisor:
            raise UndecidedError
        return Dim.of(self.slope // divisor, self.offset // divisor)

    def __rfloordiv__(self, other: object) -> int:
        raise UndecidedError

    __truediv__ = __floordiv__
    __rtruediv__ = __rfloordiv__

    def __floor__(self) -> Dim:
        return self

    __ceil__ = __floor__


BATCH_DIM: Final = Dim(1)


def _parts(number: object) -> tuple[int, int]:
    if isinstance(number, Dim):
        return number.slope, number.offset
    if isinstance(number, (int, float, np.integer, np.floating)) and float(number).is_integer():
        return 0, int(number)
    raise UndecidedError


def decide(compare: Callable[[Any, Any], bool], a: object, b: object) -> bool:
    """``compare(a, b)`` (an order or equality), if it comes out the same for every batch size.

    Raises UndecidedError otherwise.
    """
    if not isinstance(a, Dim) and not isinstance(b, Dim):
        return bool(compare(a, b))
    (slope, offset), (other_slope, other_offset) = _parts(a), _parts(b)
    slope, offset = slope - other_slope, offset - other_offset
    if slope == 0:
        return bool(compare(offset, 0))
    first = slope + offset
    last = float("inf") if slope > 0 else float("-inf")
    root_is_batch = offset % slope == 0 and -offset // slope >= 1
    same_sign = first != 0 and (first > 0) == (last > 0) and not root_is_batch
    if compare in (operator.eq, operator.ne):
        if root_is_batch:
            raise UndecidedError
        return compare is operator.ne
    if same_sign or bool(compare(first, 0)) == bool(compare(last, 0)) == bool(compare(0, 0)):
        return bool(compare(first, 0))
    raise UndecidedError


def settled(array: NDArray[Any]) -> NDArray[Any]:
    """``array`` as int64 or float32 if no element of it depends on the batch, else unchanged."""
    if array.dtype != object or any(isinstance(e, Dim) for e in array.flat):
        return array
    return array.astype(np.float32 if any(isinstance(e, float) for e in array.flat) else np.int64)
