"""Weights below 8 bits: their packed form in the constants, and how a kernel unpacks them in registers.

A *slice* is as many bytes of 8-bit weights as a kernel reads at once. A code, less the lowest code of
its grid, is cut into planes of 4, 2 or 1 bits, the highest bits first: 7 bits are planes of 4, 2 and 1.
In a plane of w bits, 8/w slices share the bytes of one: byte i holds byte i of each, the first slice
in the lowest bits. A *record* is the least number of slices that fill all their planes, so nothing
but the last record holds padding. Unpacking a slice takes, per plane, a shift and a mask of vectors,
and one subtraction that puts the sign back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.packing import code_bits, lowest
from qcc_targets.cpu.kernel import Site
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory

BYTE_BITS: Final = 8

UNPACK_CYCLES: Final = 5.0
"""What it takes to unpack one vector of slices to memory, measured."""

INLINE_CYCLES: Final = 1.5
"""The same in registers, just before a product: three instructions, two a cycle."""

UNPACKED_TILES: Final = 3
"""Tiles of positions from which on unpacking weights beforehand, to memory, is faster than at each tile."""


@dataclass(frozen=True, slots=True)
class Field:
    """Where ``width`` bits of a slice lie: in vector ``vector`` of a record, ``shift`` bits up in every byte.

    They belong ``place`` bits up in the code.
    """

    vector: int
    shift: int
    place: int
    width: int


@dataclass(frozen=True, slots=True)
class LowBit:
    """Signed codes of ``bits`` bits, 2 to 7."""

    bits: int

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane, from the highest of a code to its lowest."""
        return tuple(width for width in (4, 2, 1) if self.bits & width)

    @property
    def slices(self) -> int:
        """Slices of a record."""
        return BYTE_BITS // self.planes[-1]

    @property
    def vectors(self) -> int:
        """Slices' sizes of memory that a record takes."""
        return self.slices * self.bits // BYTE_BITS

    @property
    def lowest(self) -> int:
        return lowest("i8", self.bits)

    def fields(self, number: int) -> list[Field]:
        """Where the bits of slice ``number`` of a record are."""
        found, first, place = [], 0, self.bits
        for width in self.planes:
            place -= width
            share = BYTE_BITS // width
            found.append(Field(first + number // share, number % share * width, place, width))
            first += self.slices // share
        return found

    def pack(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """``codes`` […, slices, bytes] as […, vectors, bytes] of one record."""
        raised = (codes.astype(np.int16) - self.lowest).astype(np.uint8)
        packed = np.zeros((*codes.shape[:-2], self.vectors, codes.shape[-1]), np.uint8)
        for number in range(self.slices):
            for f in self.fields(number):
                part = raised[..., number, :] >> f.place & ((1 << f.width) - 1)
                packed[..., f.vector, :] |= (part << f.shift).astype(np.uint8)
        return packed

    def records(self, codes: NDArray[np.int8]) -> NDArray[np.uint8]:
        """``codes`` [..., count, bytes] as [..., records, vectors, bytes], padded with zeros to whole records."""
        *outer, count, size = codes.shape
        padded = np.pad(codes, (*((0, 0),) * len(outer), (0, -count % self.slices), (0, 0)))
        return self.pack(padded.reshape(*outer, -1, self.slices, size))

    def load(self, source: Memory, record: Expr, number: int, size: int, half: int | None = None) -> Expr:
        """Slice ``number``, of ``size`` bytes, of record ``record``; ``source`` is of 16-bit elements.

        int8 codes of all bytes; or int16 codes of the even (``half`` 0) or odd (1) ones.
        """
        lanes = size // 2
        total = None
        for f in self.fields(number):
            words = emit.load(source, (record * self.vectors + f.vector) * lanes, lanes)
            down = f.shift - f.place + BYTE_BITS * (half or 0)
            mask = ((1 << f.width) - 1 << f.place) * (0x101 if half is None else 1)
            part = emit.bind(_shifted(words, down, lanes) & emit.splat("uint16", mask, lanes))
            total = part if total is None else emit.bind(total | part)
        dtype, count = ("int8", size) if half is None else ("int16", lanes)
        return emit.bind(emit.bits(f"{dtype}x{count}", total) + emit.splat(dtype, self.lowest, count))


def low_bit(site: Site) -> LowBit | None:
    """How the weights of a convolution or dense layer are packed, or None where they are whole bytes."""
    value = site.op.operands[1]
    bits = code_bits(value, site.array(1))
    return LowBit(bits) if bits is not None and value.type.dtype == "i8" and not site.zero_point(1) else None


def _shifted(words: Expr, down: int, lanes: int) -> Expr:
    if not down:
        return words
    by = emit.splat("uint16", abs(down), lanes)
    return emit.bind(words >> by if down > 0 else words << by)
