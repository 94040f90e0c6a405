"""Dense storage of narrow codes: ``bits`` bits each, one after another, without gaps.

Code number i, less the lowest code of its grid, takes the bits [bits * i, bits * (i + 1)) of one long
little-endian number: bit b of it is bit ``b % 8`` of byte ``b // 8``. Bits behind the last code are 0.
Where blocks share exponents, the mantissas are stored so, and behind them the exponents, block by block.
Where groups of output channels have widths of their own, each group is stored so, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Graph, Value
from qcc.ir.layout import Blocks, Widths
from qcc.ir.types import DTYPES, Const, Quant

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
    if bits not in range(1, 9) or dtype not in _TYPES:
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


@dataclass(frozen=True, slots=True)
class Packing:
    """How a tensor of codes is stored: ``bits`` per code, or per mantissa, or of the widest group of channels."""

    bits: int
    layout: Blocks | Widths | None = None

    def size(self, shape: tuple[int, ...]) -> int:
        """The bytes that a tensor of ``shape`` takes."""
        return sum(packed_size(count, bits) for count, bits in self._parts(shape))

    def average(self, shape: tuple[int, ...]) -> float:
        """The bits per code, exponents included."""
        return sum(count * bits for count, bits in self._parts(shape)) / max(prod(shape), 1)

    def pack(self, codes: NDArray[Any]) -> NDArray[np.uint8]:
        """``codes`` (uint8 or int8) as ``size`` bytes. Raises VerifyError where one does not lie on the grid."""
        if isinstance(self.layout, Blocks):
            exponents = self.layout.exponents(codes, self.bits)
            units = self.layout.units(exponents, codes.shape[1])
            if (codes % units).any():
                raise VerifyError("codes are no multiples of the powers of two that their blocks share")
            mantissas = pack((codes // units).astype(np.int8), self.bits)
            return np.concatenate([mantissas, pack(exponents.astype(np.uint8), self.layout.exponent_bits)])
        if isinstance(self.layout, Widths):
            runs, parts = self.layout.runs, np.split(codes, np.cumsum([n for n, _ in self.layout.runs])[:-1])
            return np.concatenate([pack(part, bits) for part, (_, bits) in zip(parts, runs, strict=True)])
        return pack(codes, self.bits)

    def unpack(self, packed: NDArray[np.uint8], shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """The codes that ``pack`` took. Raises VerifyError unless ``packed`` is exactly what it gives."""
        if self.layout is None:
            return unpack(packed, self.bits, shape, dtype)
        if packed.dtype != np.uint8 or packed.shape != (self.size(shape),):
            raise VerifyError(f"a tensor of {shape} takes {self.size(shape)} bytes, not {packed.size}")
        ends = np.cumsum([packed_size(count, bits) for count, bits in self._parts(shape)])[:-1]
        if isinstance(self.layout, Blocks):
            first, second = np.split(packed, ends)
            mantissas = unpack(first, self.bits, shape, "i8")
            blocks = (shape[0], -(-shape[1] // self.layout.size), *shape[2:])
            exponents = unpack(second, self.layout.exponent_bits, blocks, "u8").astype(np.int64)
            wide = mantissas * self.layout.units(exponents, shape[1])
            if exponents.max(initial=0) > self.layout.top(self.bits):
                raise VerifyError(f"an exponent of {exponents.max()} leaves a byte")
            codes: NDArray[Any] = wide.astype(np.int8)
            if not np.array_equal(self.layout.exponents(codes, self.bits), exponents):
                raise VerifyError("exponents are larger than their blocks need")
            return codes
        rows = [(count, *shape[1:]) for count, _ in self.layout.runs]
        parts = zip(np.split(packed, ends), self.layout.runs, rows, strict=True)
        return np.concatenate([unpack(part, bits, some, dtype) for part, (_, bits), some in parts])

    def _parts(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """Runs of (count, bits) in the order of storage."""
        if isinstance(self.layout, Blocks):
            return [(prod(shape), self.bits), (self.layout.count(shape), self.layout.exponent_bits)]
        if isinstance(self.layout, Widths):
            return [(count * prod(shape[1:]), bits) for count, bits in self.layout.runs]
        return [(prod(shape), self.bits)]


def packing(value: Value, codes: NDArray[Any]) -> Packing | None:
    """How ``codes`` of the integer constant ``value`` are packed, or None where they stay as they are.

    That is as the grid has it, where it saves anything, and no code leaves the grid.
    """
    quant = value.type.quant
    if value.type.dtype not in _TYPES or quant is None or quant.dtype != value.type.dtype:
        return None
    if isinstance(quant.layout, Widths) and quant.layout.axis != 0:
        return None
    if quant.layout is None and quant.bits not in WIDTHS:
        return None
    on_grid = np.array_equal(_snapped(quant, codes), codes)
    return Packing(quant.bits, quant.layout) if on_grid else None


def _snapped(quant: Quant, codes: NDArray[Any]) -> NDArray[Any]:
    """``codes`` moved to the nearest on their grid."""
    if isinstance(quant.layout, Blocks):
        return quant.layout.nearest(codes, quant.bits)
    clipped: NDArray[Any] = np.clip(codes, *quant.limits(codes.ndim))
    return clipped


def code_bits(value: Value, codes: NDArray[Any]) -> int | None:
    """The bits that hold each of ``codes`` by itself, without exponents or groups; None where a byte is needed."""
    quant = value.type.quant
    if quant is not None and quant.layout is not None and value.type.dtype == quant.dtype:
        quant = quant.plain
        value = value.typed(quant=quant)
    found = packing(value, codes)
    return found.bits if found is not None else None


def stored(graph: Graph) -> Mapping[Const, Packing]:
    """The packing of every constant that is packed; one that several values name takes the widest, if they agree."""
    found: dict[Const, Packing | None] = {}
    for o in graph.ops:
        for const in (a for a in o.attrs.values() if isinstance(a, Const)):
            new = packing(o.result, const.array)
            found[const] = _common(found[const], new) if const in found else new
    return {const: how for const, how in found.items() if how is not None}


def _common(first: Packing | None, second: Packing | None) -> Packing | None:
    if first is None or second is None or first.layout != second.layout:
        return None
    return max(first, second, key=lambda p: p.bits)
