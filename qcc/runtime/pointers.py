"""Addresses of arrays, for calls into compiled code."""

from __future__ import annotations

import ctypes
from typing import Any

from numpy.typing import NDArray


def address(array: NDArray[Any]) -> int:
    """Where a C-contiguous, non-empty array begins in memory."""
    try:  # several times faster than what works for every array
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except TypeError:  # it may not be written to
        start: int = array.__array_interface__["data"][0]
        return start


def pointer(array: NDArray[Any], offset: int = 0) -> ctypes.c_void_p:
    """A pointer ``offset`` bytes into ``array``, valid as long as the array lives."""
    return ctypes.c_void_p(address(array) + offset)
