"""How contractions are cut into blocks of AArch64's 32 vector registers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.simd import positions
from qcc_targets.cpu.simd.contraction import Contraction
from qcc_targets.cpu.simd.dot_neon import offset
from qcc_targets.cpu.simd.epilogue_neon import LANES

REGISTERS: Final = 32
VECTOR: Final = 16
"""Bytes of a vector: how much of a position's input is loaded at once."""
WRITTEN_OUT: Final = 256
"""Products that a block writes out without a loop."""


@dataclass(frozen=True, slots=True)
class NeonBlocking:
    """Blocks of ``tiles.rows`` positions by ``channels`` output channels, whole vectors of them.

    ``matrix`` multiplies two positions by two channels over eight bytes at once, else one position by
    four channels over four. With ``positions_inside`` the blocks of one group of channels follow each other.
    """

    tiles: positions.Tiles
    channels: int
    outputs: int
    positions_inside: bool
    matrix: bool

    @property
    def column_blocks(self) -> int:
        return -(-self.outputs // self.channels)

    @property
    def step(self) -> int:
        """Bytes of depth per product."""
        return 8 if self.matrix else 4

    @property
    def records(self) -> int:
        """Vectors of weights per step."""
        return self.channels * self.step // VECTOR

    def inputs(self, planes: int) -> int:
        """Vectors of input that are multiplied with each vector of weights."""
        rows = self.tiles.rows * planes
        return -(-rows // 2) if self.matrix else rows

    def __str__(self) -> str:
        inside = "positions" if self.positions_inside else "channels"
        return f"{'matrix ' if self.matrix else ''}{self.tiles.rows} by {self.channels}, {inside} inside"


def neon_candidates(work: Contraction, isa: Isa) -> list[NeonBlocking]:
    """All blockings of a contraction that the registers allow."""
    found = []
    for vectors in range(1, 9):
        channels = vectors * LANES
        if vectors > 1 and channels - LANES >= work.outputs:
            break
        # Beside accumulators: the input of every position, and two vectors of weights.
        most = min((REGISTERS - 2) // ((vectors + 1) * work.planes), 16)
        for rows in range(max(1, most - 4), most + 1):
            cut = positions.tiles(work.shape, work.strides, rows)
            for inside in (True, False):
                for matrix in (False, True) if "i8mm" in isa else (False,):
                    found.append(NeonBlocking(cut, channels, work.outputs, inside, matrix))
    return list(dict.fromkeys(found))


def neon_cycles(work: Contraction, isa: Isa, b: NeonBlocking) -> float:
    """Estimated cycles: two vector instructions and two loads a cycle, as on Neoverse and the larger Cortex cores."""
    rows, inputs = b.tiles.rows * work.planes, b.inputs(work.planes)
    steps = sum(-(-r.length // b.step) for r in work.runs)
    loads = sum(-(-r.length // VECTOR) for r in work.runs) * rows
    prepared = loads if b.matrix or offset(isa, "i8" if work.signed else "u8") else 0
    products = steps * inputs * b.records
    vector_unit = max((products + prepared) / 2, 3 * steps)
    compute = max(vector_unit, (loads + steps * b.records) / 2) + 0.1 * (products + loads + steps * b.records)
    requantize = b.tiles.rows * b.channels / LANES * (6 if work.residual else 4) + 10
    whole = work.depth * work.outputs > 32 << 10
    passes = b.column_blocks if b.positions_inside else b.tiles.count
    refetched = (work.depth * b.channels / 32 if whole and not b.positions_inside else 0.0) + passes * 0.01
    return b.tiles.count * b.column_blocks * (compute + requantize + refetched)
