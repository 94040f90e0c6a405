"""Weights below 8 bits in dense storage: unpacked into scratch, the panel of one block of channels at a time.

Each panel is a whole number of bytes, and each of its codes was written as ``qcc.ir.packing`` has it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.packing import code_bits, lowest, pack
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Site

PACKED: Final = "packed"
"""The feature of an instruction set for which constants are to be small."""


def narrow_bits(site: Site, isa: Isa) -> int | None:
    """The bits that the signed weights of ``site`` are to be packed to; None where they are to be bytes."""
    weights = site.op.operands[1]
    if PACKED not in isa or weights.type.dtype != "i8" or site.zero_point(1):
        return None
    return code_bits(weights, site.array(1))


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Unpacks codes of ``bits`` bits from a uint8 buffer into an int8 one, from its start on."""

    bits: int
    source: Any
    target: Any

    def __call__(self, start: Any, count: int) -> None:
        """Emit the loop over ``count`` codes, which begin at byte ``start``."""
        with T.serial(0, count) as i:
            place = i * self.bits
            word = T.cast(self.source[start + (place >> 3)], "int32")
            if 8 % self.bits:  # a code may lie across two bytes
                word = word | (T.cast(self.source[start + (place >> 3) + 1], "int32") << 8)
            code = (word >> (place & 7)) & ((1 << self.bits) - 1)
            T.buffer_store(self.target, T.cast(code + lowest("i8", self.bits), "int8"), [i])


def pack_panels(panels: list[NDArray[Any]], bits: int) -> NDArray[np.uint8]:
    """The panels one after another; a byte behind the last may be read."""
    packed = [pack(panel.astype(np.int8), bits) for panel in panels]
    return np.concatenate([*packed, np.zeros(1, np.uint8)])
