"""Packed weights for AMX: tiles load from memory, so a block of channels is unpacked to scratch before its use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.lowbit import LowBit
from qcc_targets.cpu.simd.tiles import ROW_BYTES


@dataclass(frozen=True, slots=True)
class TilePanel:
    """``rows`` rows of weight tiles, all that one block of channels needs; the slices of a record are rows."""

    packing: LowBit
    rows: int

    @property
    def records(self) -> int:
        return -(-self.rows // self.packing.slices)

    @property
    def size(self) -> int:
        """Bytes of the unpacked panel."""
        return self.records * self.packing.slices * ROW_BYTES

    def pack(self, weights: NDArray[np.int8]) -> NDArray[np.uint8]:
        """``weights`` [blocks, …], tile after tile, as [blocks, records, …]."""
        return self.packing.records(weights.reshape(len(weights), self.rows, ROW_BYTES))

    def unpack(self, source: Memory, block: Expr, target: Memory) -> None:
        """Write the tiles of block number ``block`` to ``target``; ``source`` is of 16-bit elements."""
        slices = self.packing.slices
        with emit.loop(self.records) as record:
            for number in range(slices):
                row = self.packing.load(source, block * self.records + record, number, ROW_BYTES)
                emit.store(target, (record * slices + number) * ROW_BYTES, row, ROW_BYTES)
