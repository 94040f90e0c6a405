"""The requantization of vectors of accumulators, and their narrowing to bytes.

A vector holds L = bits/32 accumulators. Products are 64 bits wide, so even and odd lanes are
multiplied apart, with multipliers and constants that are stored apart already. At shift 32 the
result is the upper half of every 64-bit lane, and one permutation joins even and odd lanes. Four
such vectors are narrowed to one vector of bytes by packs, whose saturation is the clamp to a byte.

Two ways to multiply: ``vpmuldq`` takes signed 32-bit operands and needs an addition; with IFMA
``vpmadd52luq`` does both, for products that are unsigned and below 2**52.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import TVM_DTYPE
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.requant import WORD, Requant

RECORD: Final = 4
"""Vectors of constants per vector of accumulators: m even, m odd, c even, c odd; with a residual two more."""

_PACK_WORDS: Final = {512: "x86.avx512.packssdw.512", 256: "x86.avx2.packssdw", 128: "x86.sse2.packssdw.128"}
_PACK_UNSIGNED: Final = {512: "x86.avx512.packuswb.512", 256: "x86.avx2.packuswb", 128: "x86.sse2.packuswb.128"}
_PACK_SIGNED: Final = {512: "x86.avx512.packsswb.512", 256: "x86.avx2.packsswb", 128: "x86.sse2.packsswb.128"}


def packed_order(lanes: int) -> NDArray[np.int64]:
    """Byte that lane l of vector i becomes when four vectors are packed, [4, lanes].

    Packs work within 128-bit blocks: block b of the bytes holds, in turn, block b of each vector.
    """
    block, element = np.divmod(np.arange(lanes), 4)
    return 16 * block + 4 * np.arange(4)[:, None] + element


@dataclass(frozen=True, slots=True)
class Constants:
    """The constants of one vector of accumulators, loaded."""

    m: tuple[Expr, Expr]
    c: tuple[Expr, Expr]
    mr: tuple[Expr, Expr] | None = None


@dataclass(frozen=True, slots=True)
class Epilogue:
    """Emits the requantization ``requant`` for instruction set ``isa``.

    ``fused`` says to use ``vpmadd52luq`` for the accumulators: they must then have begun at
    ``requant.start``, which ``requant`` must account for.
    """

    isa: Isa
    requant: Requant
    fused: bool = False

    @property
    def lanes(self) -> int:
        return self.isa.vector_bits // 32

    @property
    def record(self) -> int:
        """int64 elements of the constants of one vector."""
        return (RECORD if self.requant.mr is None else RECORD + 2) * self.lanes // 2

    def pack(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The constants for vectors whose lanes hold ``channels`` [vectors, lanes]; -1: nothing."""
        requant = self.requant
        kinds = [requant.m, requant.c] if requant.mr is None else [requant.m, requant.c, requant.mr]
        columns = []
        for kind in kinds:
            per_lane = np.where(channels < 0, 0, kind[np.maximum(channels, 0)])
            columns += [per_lane[:, 0::2], per_lane[:, 1::2]]
        return np.concatenate(columns, axis=1)

    def load(self, source: Memory, vector: Expr) -> Constants:
        """The constants of vector number ``vector`` from what ``pack`` gave."""
        half = self.lanes // 2
        base = vector * self.record
        pairs = [
            (emit.load(source, base + at, half), emit.load(source, base + at + half, half))
            for at in range(0, self.record, self.lanes)
        ]
        return Constants(*pairs)

    def joined(self, planes: tuple[Expr, ...], begin: Expr) -> Expr:
        """Accumulators from those over low bytes, those over high bytes, and what they begin at."""
        low, high = planes
        raised = emit.bind(high << emit.splat("int32", 8, self.lanes))
        return emit.bind(emit.bind(low + begin) + raised)

    def halves(self, acc: Expr) -> tuple[Expr, Expr]:
        """Even and odd lanes of a vector of accumulators, each in the low half of 64-bit lanes."""
        half = self.lanes // 2
        if self.fused:
            wide = emit.bind(emit.bits(f"uint64x{half}", acc))
            even = emit.bind(wide & emit.splat("uint64", 0xFFFFFFFF, half))
            return even, emit.bind(wide >> emit.splat("uint64", 32, half))
        wide = emit.bind(emit.bits(f"int64x{half}", acc))
        return wide, emit.bind(wide >> emit.splat("int64", 32, half))

    def apart(self, source: Memory, index: Expr) -> tuple[Expr, Expr]:
        """Like ``halves`` of accumulators in memory: loads one element apart cost no shift."""
        half = self.lanes // 2
        vectors = [emit.load(source, index + odd, self.lanes) for odd in (0, 1)]
        even, odd = (emit.bind(emit.bits(f"int64x{half}", v)) for v in vectors)
        return even, odd

    def requantize(self, halves: tuple[Expr, Expr], k: Constants, residual: tuple[Expr, Expr] | None = None) -> Expr:
        """The results of one vector as int32, not clamped, from even and odd accumulators."""
        lanes, half = self.lanes, self.lanes // 2
        even, odd = (self._multiply_add(a, m, c) for a, m, c in zip(halves, k.m, k.c, strict=True))
        if residual is not None and k.mr is not None:
            even, odd = (self._add_residual(t, r, m) for t, r, m in zip((even, odd), residual, k.mr, strict=True))
        high = self.requant.shift == WORD
        if not high:
            by = emit.splat("int64", self.requant.shift, half)
            even, odd = emit.bind(even >> by), emit.bind(odd >> by)
        order = [side * lanes + 2 * i + high for i in range(half) for side in (0, 1)]
        return emit.shuffle([emit.bits(f"int32x{lanes}", even), emit.bits(f"int32x{lanes}", odd)], order)

    def _multiply_add(self, acc: Expr, m: Expr, c: Expr) -> Expr:
        half = self.lanes // 2
        if self.fused:
            return self._fused(c, acc, m)
        return emit.bind(_signed(acc, half) * _signed(m, half) + c)

    def _add_residual(self, total: Expr, codes: Expr, mr: Expr) -> Expr:
        half = self.lanes // 2
        if "ifma" in self.isa:
            return self._fused(total, codes, mr)
        low = emit.splat("int64", 0xFFFFFFFF, half)
        return emit.bind((codes & low) * (mr & low) + total)

    def _fused(self, total: Expr, a: Expr, b: Expr) -> Expr:
        half = self.lanes // 2
        dtype = f"int64x{half}"
        name = f"x86.avx512.vpmadd52l.uq.{self.isa.vector_bits}"
        return emit.pure(dtype, name, total, emit.bits(dtype, a), emit.bits(dtype, b))

    def clamped(self, value: Expr) -> Expr:
        """The clamp of a vector of int32 results, then as its own type of 16 or 32 bits."""
        requant, lanes = self.requant, self.lanes
        if requant.low > -(1 << 31):
            value = emit.bind(emit.maximum(value, emit.splat("int32", requant.low, lanes)))
        if requant.high < (1 << 31) - 1:
            value = emit.bind(emit.minimum(value, emit.splat("int32", requant.high, lanes)))
        return value if requant.dtype == "i32" else emit.cast(f"{TVM_DTYPE[requant.dtype]}x{lanes}", value)

    def narrow(self, results: Sequence[Expr]) -> Expr:
        """Four vectors of results as one vector of clamped bytes, in the order of ``packed_order``."""
        bits, lanes, requant = self.isa.vector_bits, self.lanes, self.requant
        words = [
            emit.pure(f"int16x{2 * lanes}", _PACK_WORDS[bits], a, b)
            for a, b in zip(results[0::2], results[1::2], strict=True)
        ]
        unsigned = requant.dtype == "u8"
        base = "uint8" if unsigned else "int8"
        pack = (_PACK_UNSIGNED if unsigned else _PACK_SIGNED)[bits]
        packed = emit.pure(f"{base}x{4 * lanes}", pack, *words)
        least, most = (0, 255) if unsigned else (-128, 127)
        if requant.low > least:
            packed = emit.bind(emit.maximum(packed, emit.splat(base, requant.low, 4 * lanes)))
        if requant.high < most:
            packed = emit.bind(emit.minimum(packed, emit.splat(base, requant.high, 4 * lanes)))
        return packed

    def residual_halves(self, codes: Expr, bits: int) -> tuple[Expr, Expr]:
        """Even and odd residual codes of one vector of ``lanes``, unsigned and ``bits`` wide, in 64-bit lanes."""
        half = self.lanes // 2
        pairs = emit.bits(f"uint{2 * bits}x{half}", codes)
        wide = emit.bind(emit.cast(f"int64x{half}", pairs))
        low = emit.splat("int64", (1 << bits) - 1, half)
        return emit.bind(wide & low), emit.bind(wide >> emit.splat("int64", bits, half))


def _signed(value: Expr, half: int) -> Expr:
    """The low 32 bits of every 64-bit lane, as signed: the pattern that becomes an operand of vpmuldq."""
    by = emit.splat("int64", 32, half)
    return (value << by) >> by
