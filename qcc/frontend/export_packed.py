"""Weights below 8 bits in an exported INTEGER graph: packed initializers, and standard nodes that unpack them.

Eight codes of b bits lie in b bytes (``qcc.ir.packing``). Each is cut from the two bytes that it may
touch. The nodes depend on nothing but constants, so a runtime that folds constants unpacks once.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export_builder import Builder
from qcc.ir.packing import pack, packed_size

Array = NDArray[Any]

_WORTH_BYTES: Final = 1024
"""What packing must save: the nodes that undo it take about as much."""


def worth_packing(codes: Array, bits: int) -> bool:
    return codes.size - packed_size(codes.size, bits) >= _WORTH_BYTES


def unpacked(b: Builder, stem: str, codes: Array, bits: int) -> str:
    """A uint8 tensor of int8 ``codes``, less the lowest code of ``bits`` bits, computed from a packed initializer."""
    data = pack(codes, bits)
    octets = b.const(np.pad(data, (0, -data.size % bits)).reshape(-1, bits), f"{stem}/packed")
    byte, shift = np.divmod(bits * np.arange(8), 8)
    low, second = (_picked(b, stem, octets, columns) for columns in (byte, np.minimum(byte + 1, bits - 1)))
    high = b.node("BitShift", [second, _word(b, 8)], f"{stem}/high", direction="LEFT")
    pair = b.node("BitwiseOr", [low, high], f"{stem}/pair")
    down = b.node("BitShift", [pair, b.const(shift.astype(np.uint32), "shift")], f"{stem}/down", direction="RIGHT")
    code = b.node("BitwiseAnd", [down, _word(b, (1 << bits) - 1)], f"{stem}/code")
    flat = b.node("Reshape", [b.cast(code, np.uint8, f"{stem}/byte"), b.ints([-1], "flat")], f"{stem}/flat")
    if codes.size % 8:
        ends = [b.ints([n], "end") for n in (0, codes.size)]
        flat = b.node("Slice", [flat, *ends], f"{stem}/codes")
    return b.node("Reshape", [flat, b.ints(codes.shape, "shape")], stem)


def _picked(b: Builder, stem: str, octets: str, columns: Array) -> str:
    """These columns of the bytes, as uint32."""
    picked = b.node("Gather", [octets, b.const(columns.astype(np.int64), "column")], f"{stem}/part", axis=1)
    return b.cast(picked, np.uint32, f"{stem}/part")


def _word(b: Builder, value: int) -> str:
    return b.scalar(value, np.uint32, "word")
