"""The requantization in AArch64's vectors of 128 bits: four accumulators, in natural order throughout.

``smlal`` multiplies the lower and the upper half of a vector into 64-bit lanes and adds; at shift 32 one
``uzp2`` takes the upper words of both. Saturating narrowings are the clamp to a byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue import Constants, Epilogue
from qcc_targets.cpu.simd.requant import WORD, Requant

LANES = 4


def epilogue(isa: Isa, requant: Requant, fused: bool = False) -> Epilogue:
    """The epilogue for ``isa``, of either processor family."""
    return NeonEpilogue(isa, requant) if "neon" in isa else Epilogue(isa, requant, fused)


@dataclass(frozen=True, slots=True)
class NeonEpilogue(Epilogue):
    """Emits the requantization ``requant`` for AArch64; halves of a vector are its lower and its upper two lanes."""

    @property
    def record(self) -> int:
        """int64 elements of the constants of one vector: m as 32-bit words, c, and with a residual mr as words."""
        return 6 if self.requant.mr is None else 8

    def pack(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        def picked(kind: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.where(channels < 0, 0, kind[np.maximum(channels, 0)])

        def words(kind: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.ascontiguousarray(picked(kind).astype("<i4")).view("<i8")

        requant = self.requant
        parts = [words(requant.m), picked(requant.c)]
        if requant.mr is not None:
            parts.append(words(requant.mr))
        return np.concatenate(parts, axis=1)

    def load(self, source: Memory, vector: Expr) -> Constants:
        base = vector * self.record
        m, c0, c1, *mr = (emit.load(source, base + at, 2) for at in range(0, self.record, 2))
        return Constants(_halves(m), (c0, c1), _halves(mr[0]) if mr else None)

    def halves(self, acc: Expr) -> tuple[Expr, Expr]:
        """The lower and the upper lanes of a vector of accumulators."""
        return _halves(acc)

    def requantize(self, halves: tuple[Expr, Expr], k: Constants, residual: tuple[Expr, Expr] | None = None) -> Expr:
        sums = [
            emit.bind(emit.cast("int64x2", a) * emit.cast("int64x2", m) + c)
            for a, m, c in zip(halves, k.m, k.c, strict=True)
        ]
        if residual is not None and k.mr is not None:
            sums = [self._with_residual(*terms) for terms in zip(sums, residual, k.mr, strict=True)]
        high = self.requant.shift == WORD
        if not high:
            by = emit.splat("int64", self.requant.shift, 2)
            sums = [emit.bind(total >> by) for total in sums]
        return emit.shuffle([emit.bits("int32x4", total) for total in sums], [2 * i + high for i in range(LANES)])

    def _with_residual(self, total: Expr, codes: Expr, mr: Expr) -> Expr:
        """Both factors are unsigned, and their product is below 2**63."""
        wide = [emit.cast("uint64x2", emit.bits("uint32x2", v)) for v in (codes, mr)]
        return emit.bind(total + emit.bits("int64x2", emit.bind(wide[0] * wide[1])))

    def narrow(self, results: Sequence[Expr]) -> Expr:
        """Four vectors of results as one vector of clamped bytes, in their order."""
        unsigned = self.requant.dtype == "u8"
        base, name = ("uint8", "sqxtun") if unsigned else ("int8", "sqxtn")
        words = [emit.pure("int16x4", "aarch64.neon.sqxtn", r) for r in results]
        pairs = [emit.shuffle(pair, range(8)) for pair in zip(words[0::2], words[1::2], strict=True)]
        packed = emit.shuffle([emit.pure(f"{base}x8", f"aarch64.neon.{name}", p) for p in pairs], range(16))
        least, most = (0, 255) if unsigned else (-128, 127)
        if self.requant.low > least:
            packed = emit.bind(emit.maximum(packed, emit.splat(base, self.requant.low, 16)))
        if self.requant.high < most:
            packed = emit.bind(emit.minimum(packed, emit.splat(base, self.requant.high, 16)))
        return packed

    def residual_halves(self, codes: Expr, bits: int) -> tuple[Expr, Expr]:
        """The lower and the upper of four residual codes, unsigned and ``bits`` wide, as 32-bit lanes."""
        return _halves(emit.bind(emit.cast("int32x4", codes)))


def _halves(vector: Expr) -> tuple[Expr, Expr]:
    """The two halves of 128 bits, as 32-bit lanes."""
    words = emit.bind(emit.bits("int32x4", vector))
    return emit.shuffle([words], [0, 1]), emit.shuffle([words], [2, 3])
