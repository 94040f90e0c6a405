"""Weights below 8 bits in dense storage: unpacked into scratch, the panel of one block of channels at a time.

Each panel is a whole number of bytes, and each of its codes was written as ``qcc.ir.packing`` has it. Where blocks of
input channels share exponents, the panel's codes are mantissas, and its exponents lie behind them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.layout import Blocks
from qcc.ir.packing import code_bits, lowest, pack, packed_size, packing
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Site

PACKED: Final = "packed"
"""The feature of an instruction set for which constants are to be small."""


@dataclass(frozen=True, slots=True)
class Narrow:
    """Panels of signed codes of ``bits`` bits, or of mantissas; ``channels`` are innermost in a row's taps."""

    bits: int
    blocks: Blocks | None
    channels: int

    def exponents(self, taps: int) -> int:
        """Exponents of a row of ``taps`` weights."""
        return 0 if self.blocks is None else taps // self.channels * -(-self.channels // self.blocks.size)

    def size(self, taps: int, outputs: int) -> int:
        """Bytes of a panel of ``taps`` by ``outputs`` weights."""
        behind = packed_size(self.exponents(taps) * outputs, self.blocks.exponent_bits) if self.blocks else 0
        return packed_size(taps * outputs, self.bits) + behind

    def pack(self, panel: NDArray[Any], outputs: int) -> NDArray[np.uint8]:
        """A ``panel``, flat [taps, outputs], as ``size`` bytes."""
        if self.blocks is None:
            return pack(panel.astype(np.int8), self.bits)
        codes = panel.astype(np.int64).reshape(-1, self.channels, outputs)
        exponents = self.blocks.exponents(codes, self.bits)
        mantissas = codes // self.blocks.units(exponents, self.channels)
        parts = pack(mantissas.astype(np.int8), self.bits), pack(exponents.astype(np.uint8), self.blocks.exponent_bits)
        return np.concatenate(parts)


def narrow(site: Site, isa: Isa) -> Narrow | None:
    """How the signed weights of ``site`` are to be packed; None where they are to be bytes."""
    weights = site.op.operands[1]
    if PACKED not in isa or weights.type.dtype != "i8" or site.zero_point(1):
        return None
    codes = site.array(1)
    found = packing(weights, codes)
    if found is not None and isinstance(found.layout, Blocks):
        return Narrow(found.bits, found.layout, codes.shape[1])
    bits = code_bits(weights, codes)
    return None if bits is None else Narrow(bits, None, codes.shape[1])


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Unpacks panels from a uint8 buffer into an int8 one, from its start on."""

    form: Narrow
    source: Any
    target: Any

    def __call__(self, start: Any, taps: int, outputs: int) -> None:
        """Emit the loops over a panel of ``taps`` by ``outputs`` weights, which begins at byte ``start``."""
        form, count = self.form, taps * outputs
        with T.serial(0, count) as i:
            code = self._field(start, i, form.bits) + lowest("i8", form.bits)
            T.buffer_store(self.target, T.cast(code, "int8"), [i])
        if form.blocks is None:
            return
        behind, size = start + packed_size(count, form.bits), form.blocks.size
        whole, rest = divmod(form.channels, size)
        with T.serial(0, taps // form.channels) as tap:
            block, column = tap * (whole + bool(rest)), tap * form.channels
            if whole:
                with T.serial(0, whole) as b, T.serial(0, size) as j:
                    self._scale(behind, block + b, column + b * size + j, outputs)
            if rest:
                with T.serial(0, rest) as j:
                    self._scale(behind, block + whole, column + whole * size + j, outputs)

    def _scale(self, start: Any, block: Any, column: Any, outputs: int) -> None:
        """Multiply a column of mantissas by the powers of two whose exponents are number ``block`` behind ``start``."""
        bits = self.form.blocks.exponent_bits if self.form.blocks else 0
        with T.serial(0, outputs) as o:
            exponent = self._field(start, block * outputs + o, bits)
            at = column * outputs + o
            # A factor, since C does not define left shifts of negative numbers.
            scaled = T.cast(self.target[at], "int32") * (T.int32(1) << exponent)
            T.buffer_store(self.target, T.cast(scaled, "int8"), [at])

    def _field(self, start: Any, number: Any, bits: int) -> Any:
        """Field ``number`` of ``bits`` bits, behind byte ``start``, as int32."""
        place = number * bits
        word = T.cast(self.source[start + (place >> 3)], "int32")
        if 8 % bits:  # a code may lie across two bytes
            word = word | (T.cast(self.source[start + (place >> 3) + 1], "int32") << 8)
        return (word >> (place & 7)) & ((1 << bits) - 1)


def pack_panels(panels: list[tuple[NDArray[Any], int]], form: Narrow) -> NDArray[np.uint8]:
    """The panels, each with its outputs, one after another; a byte behind the last may be read."""
    packed = [form.pack(panel, outputs) for panel, outputs in panels]
    return np.concatenate([*packed, np.zeros(1, np.uint8)])
