"""Dense storage of narrow codes: ``bits`` bits each, one after another, without gaps.

Code number i, less the lowest code of its grid, takes the bits [bits * i, bits * (i + 1)) of one long
little-endian number: bit b of it is bit ``b % 8`` of byte ``b // 8``. Bits behind the last code are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Graph, Value
from qcc.ir.types import DTYPES, Const

WIDTHS: Final = range(2, 8)
"""Bits per code that packing is for; 8-bit codes are bytes already."""

_TYPES: Final = ("u8", "i8")
"""Element types whose codes may be narrower than a byte."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits take."""
    return -(-count * bits // 8)


def lowest(dtype: str, bits: int) -> int:
    """The lowest code of ``bits`` bits of element type ``dtype``: what a stored 0 stands for."""
    return -(1 << (bits - 1)) if dtype.startswith("i") else 0


def pack(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """``codes`` (uint8 or int8, any shape), in C order, as ``packed_size`` bytes.

    Raises VerifyError where a code does not fit ``bits`` bits.
    """
    low = lowest("i8" if codes.dtype == np.int8 else "u8", bits)
    flat = codes.reshape(-1).astype(np.int16) - low
    if flat.size and (flat.min() < 0 or flat.max() >> bits):
        raise VerifyError(f"codes from {codes.min()} to {codes.max()} do not fit {bits} bits")
    octets = np.pad(flat, (0, -flat.size % 8)).astype("<u8").reshape(-1, 8)
    words = np.zeros(len(octets), "<u8")  # eight codes take a whole number of bytes
    for place in range(8):
        words |= octets[:, place] << np.uint64(bits * place)
    packed = words.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
    return np.ascontiguousarray(packed[: packed_size(flat.size, bits)])


def unpack(packed: NDArray[np.uint8], bits: int, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """The codes that ``pack`` took, as element type ``dtype`` ("u8" or "i8").

    Raises VerifyError unless ``packed`` is exactly what ``pack`` gives for so many codes.
    """
    count = prod(shape)
    if bits not in WIDTHS or dtype not in _TYPES:
        raise VerifyError(f"no packing has {bits}-bit codes of type '{dtype}'")
    if packed.dtype != np.uint8 or packed.shape != (packed_size(count, bits),):
        raise VerifyError(f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, not {packed.size}")
    padded = np.pad(packed, (0, -packed.size % bits)).reshape(-1, bits)
    words = np.pad(padded, ((0, 0), (0, 8 - bits))).view("<u8").reshape(-1)
    octets = np.stack([words >> np.uint64(bits * place) for place in range(8)], axis=1)
    flat = (octets & np.uint64((1 << bits) - 1)).astype(np.int16).reshape(-1)
    if flat[count:].any():
        raise VerifyError("the bits behind the last code are not 0")
    codes: NDArray[Any] = (flat[:count] + lowest(dtype, bits)).astype(DTYPES[dtype]).reshape(shape)
    return codes


def code_bits(value: Value, codes: NDArray[Any]) -> int | None:
    """The bits that ``codes`` of the integer constant ``value`` are packed to, or None where they stay as they are.

    That is the width of the grid, where it is narrower than a byte and no code leaves it.
    """
    quant = value.type.quant
    if value.type.dtype not in _TYPES or quant is None or quant.bits not in WIDTHS:
        return None
    inside = not codes.size or (quant.qmin <= int(codes.min()) and int(codes.max()) <= quant.qmax)
    return quant.bits if inside else None


def stored_bits(graph: Graph) -> Mapping[Const, int]:
    """The bits per code of every constant that is packed; one that several values name takes the widest."""
    found: dict[Const, int | None] = {}
    for o in graph.ops:
        for const in (a for a in o.attrs.values() if isinstance(a, Const)):
            bits = code_bits(o.result, const.array)
            known = found.get(const, bits)
            found[const] = None if bits is None or known is None else max(bits, known)
    return {const: bits for const, bits in found.items() if bits is not None}
