"""16-bit codes as two planes of bytes, so that products of bytes serve them too.

A code is 256 · high + low, both unsigned: signed codes are raised by 2**15 first. A sum of products
over codes is then 256 times that over the high bytes plus that over the low ones, modulo 2**32.
"""

from __future__ import annotations

from dataclasses import dataclass

from qcc_targets.cpu import views
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, SLACK, View
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory

PLANES = 2
"""Low bytes, then high bytes."""


@dataclass(frozen=True, slots=True)
class Split:
    """The planes of a tensor of 16-bit codes, in scratch memory; each keeps the tensor's strides."""

    view: View

    @property
    def first(self) -> int:
        """The element of the storage that is byte 0 of a plane: the first of the tensor or its halo."""
        v, halo = self.view, self.view.halo
        return v.offset - (halo.top * v.row_stride + halo.left * v.pixel_stride if halo else 0)

    @property
    def pitch(self) -> int:
        """Bytes from the low plane to the high one."""
        return -(-(views.extent(self.view) - self.first) // ALIGN) * ALIGN + SLACK

    @property
    def size(self) -> int:
        return PLANES * self.pitch

    @property
    def unit(self) -> int:
        """By how much a code is greater where both of its bytes are by one."""
        return (1 << 8) + 1

    @property
    def raised(self) -> int:
        """What was added to every code to make it unsigned."""
        return 1 << 15 if self.view.dtype == "i16" else 0

    def emit(self, isa: Isa, source: Memory, planes: Memory) -> None:
        """Write both planes; reads up to a vector past the tensor."""
        lanes = isa.vector_bits // 16
        blocks = -(-(views.extent(self.view) - self.first) // lanes)
        with emit.loop(blocks) as number:
            at = number * lanes
            words = emit.bind(emit.bits(f"uint16x{lanes}", emit.load(source, at + self.first, lanes)))
            high = emit.bind(words >> emit.splat("uint16", 8, lanes))
            if self.raised:
                high = emit.bind(high ^ emit.splat("uint16", 128, lanes))
            low = emit.bind(words & emit.splat("uint16", 255, lanes))
            self._store(planes, at, low, lanes)
            self._store(planes, at + self.pitch, high, lanes)

    def _store(self, planes: Memory, at: Expr, words: Expr, lanes: int) -> None:
        emit.store(planes, at, emit.cast(f"uint8x{lanes}", words), lanes)
