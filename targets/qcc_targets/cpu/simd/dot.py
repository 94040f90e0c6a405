"""Dot products of four unsigned bytes with four signed ones in every 32-bit lane, per instruction set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory


@dataclass(frozen=True, slots=True)
class Dot:
    """acc += a · b, exactly. ``a`` holds u8, ``b`` was made by ``pack``.

    VNNI does it in one instruction. Without it bytes are widened to 16 bits, in pairs: ``vpmaddubsw``
    would saturate.
    """

    isa: Isa

    @property
    def lanes(self) -> int:
        return self.isa.vector_bits // 32

    @property
    def vnni(self) -> bool:
        return "vnni" in self.isa or ("avxvnni" in self.isa and self.isa.vector_bits == 256)

    @property
    def vectors(self) -> int:
        """Vectors in memory for the ``b`` of one product."""
        return 1 if self.vnni else 2

    @property
    def dtype(self) -> str:
        """Element type of packed ``b``."""
        return "int8" if self.vnni else "int16"

    def pack(self, weights: NDArray[np.int8]) -> NDArray[Any]:
        """``weights`` […, lanes, 4] as they are loaded: [… , vectors * lanes * 4 / itemsize]."""
        if self.vnni:
            return weights.reshape(*weights.shape[:-2], -1)
        pairs = np.stack([weights[..., 0::2], weights[..., 1::2]], axis=-3)
        return np.ascontiguousarray(pairs.reshape(*weights.shape[:-2], -1).astype(np.int16))

    def size(self) -> int:
        """Elements of packed ``b`` per product."""
        return self.lanes * 4

    def load(self, source: Memory, product: Expr) -> tuple[Expr, ...]:
        """The ``b`` of product number ``product``."""
        each = self.size() // self.vectors
        return tuple(emit.load(source, product * self.size() + at, each) for at in range(0, self.size(), each))

    def spread(self, source: Memory, index: Expr) -> tuple[Expr, ...]:
        """Four bytes of memory as the ``a`` of every lane."""
        word = emit.bits("int32", emit.load(source, index, 4))
        return self.operand(emit.bind(emit.broadcast(word, self.lanes)))

    def operand(self, words: Expr) -> tuple[Expr, ...]:
        """A vector of 32-bit lanes, four u8 each, as an ``a``."""
        if self.vnni:
            return (emit.bind(emit.bits(f"uint8x{4 * self.lanes}", words)),)
        pairs = emit.bind(emit.bits(f"uint16x{2 * self.lanes}", words))
        even = emit.bind(pairs & emit.splat("uint16", 255, 2 * self.lanes))
        odd = emit.bind(pairs >> emit.splat("uint16", 8, 2 * self.lanes))
        return tuple(emit.bind(emit.bits(f"int16x{2 * self.lanes}", v)) for v in (even, odd))

    def add(self, acc: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        """The accumulators ``acc`` (int32) plus the products of ``a`` and ``b``."""
        bits, dtype = self.isa.vector_bits, f"int32x{self.lanes}"
        if self.vnni:
            return emit.pure(dtype, f"x86.avx512.vpdpbusd.{bits}", acc, a[0], b[0])
        name = {512: "x86.avx512.pmaddw.d.512", 256: "x86.avx2.pmadd.wd", 128: "x86.sse2.pmadd.wd"}[bits]
        for x, y in zip(a, b, strict=True):
            acc = emit.bind(acc + emit.pure(dtype, name, x, y))
        return acc
