"""Products of bytes on AArch64: ``sdot``, ``usdot``, and the products of 2x8 by 8x2 matrices of i8mm.

``sdot`` takes two signed operands. Where that is all there is, unsigned codes are multiplied less 128,
whose bytes are theirs with the uppermost bit flipped; the requantization adds 128 times the weights' sum
(``offset``). Sums wrap modulo 2**32, and only the whole one must fit, which ``fold`` proves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.dot import Dot
from qcc_targets.cpu.simd.emit import Expr

OFFSET: Final = 128


def offset(isa: Isa, dtype: str) -> int:
    """What ``isa`` subtracts from every byte of codes of ``dtype`` before it multiplies them."""
    return OFFSET if "neon" in isa and "i8mm" not in isa and dtype != "i8" else 0


def dot(isa: Isa) -> Dot:
    """The products of unsigned bytes for ``isa``, of either processor family."""
    return NeonDot(isa) if "neon" in isa else Dot(isa)


@dataclass(frozen=True, slots=True)
class NeonDot(Dot):
    """acc += a · b, where ``a`` holds u8, or i8 where ``signed``."""

    signed: bool = False

    @property
    def vnni(self) -> bool:
        """Whether bytes are multiplied as they are."""
        return True

    @property
    def flips(self) -> bool:
        """Whether ``a`` is made signed by taking ``OFFSET`` off."""
        return not self.signed and "i8mm" not in self.isa

    def pack(self, weights: NDArray[np.int8]) -> NDArray[Any]:
        return weights.reshape(*weights.shape[:-2], -1)

    def operand(self, words: Expr) -> tuple[Expr, ...]:
        codes = emit.bind(emit.bits("uint8x16", words))
        return (emit.bind(codes ^ emit.splat("uint8", OFFSET, 16)) if self.flips else codes,)

    def add(self, acc: Expr, a: tuple[Expr, ...], b: tuple[Expr, ...]) -> Expr:
        return self.product(acc, a[0], b[0], "dot")

    def multiply(self, acc: Expr, a: Expr, b: Expr) -> Expr:
        """acc[i, j] += Σ a[i, k] b[j, k] for two rows of eight bytes in each; ``acc`` is [2, 2]."""
        return self.product(acc, a, b, "mmla")

    def product(self, acc: Expr, a: Expr, b: Expr, shape: str) -> Expr:
        if self.signed or self.flips:
            # Weights first: the second factor may then be one lane of a vector. Matrices come in their order.
            factors = (b, emit.bits("int8x16", a)) if shape == "dot" else (emit.bits("int8x16", a), b)
            return emit.pure("int32x4", f"aarch64.neon.s{shape}", acc, *factors)
        return emit.pure("int32x4", f"aarch64.neon.us{shape}", acc, emit.bits("uint8x16", a), b)
