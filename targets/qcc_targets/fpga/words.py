"""Frames as the words of a stream, and back: elements side by side, the first lowest, whole bytes a word."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def pack_words(codes: Array, bits: int, lanes: int) -> bytes:
    """``codes`` [frames, elements] as words of ``lanes`` elements of ``bits`` bits, little-endian bytes."""
    elements = np.ascontiguousarray(codes, "<i8").reshape(-1, lanes)
    spread = np.unpackbits(elements.view(np.uint8).reshape(*elements.shape, 8), axis=2, bitorder="little")
    return np.packbits(spread[:, :, :bits].reshape(len(elements), -1), axis=1, bitorder="little").tobytes()


def unpack_words(data: bytes, bits: int, lanes: int, signed: bool) -> Array:
    """The elements of all words in ``data``, int64."""
    size = -(-bits * lanes // 8)
    words = np.frombuffer(data, np.uint8).reshape(-1, size)
    spread = np.unpackbits(words, axis=1, bitorder="little")[:, : bits * lanes].reshape(-1, bits)
    weights = np.int64(1) << np.arange(bits, dtype=np.int64)
    if signed:
        weights[-1] = -weights[-1]
    codes: Array = spread.astype(np.int64) @ weights
    return codes
