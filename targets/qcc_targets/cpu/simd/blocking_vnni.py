"""How contractions with dot-product instructions are cut into blocks of registers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.simd import positions
from qcc_targets.cpu.simd.blocking import L1_BYTES, STREAMED
from qcc_targets.cpu.simd.contraction import Contraction
from qcc_targets.cpu.simd.dot import Dot
from qcc_targets.cpu.simd.lowbit import INLINE_CYCLES, UNPACK_CYCLES, UNPACKED_TILES

L2_BYTES: Final = 20
"""Bytes per cycle from the second-level cache into registers, asked for ahead of time."""
L3_BYTES: Final = 5
"""The same from further away."""
L2_HELD: Final = 1 << 20
"""What of the second-level cache weights may count on."""


@dataclass(frozen=True, slots=True)
class VnniBlocking:
    """Blocks of ``tiles.rows`` positions by ``channels`` output channels, whole vectors of them.

    Up to ``unrolled`` steps of depth are written out, more are looped over in groups of ``group``.
    With ``positions_inside`` the blocks of one group of channels follow each other.
    """

    tiles: positions.Tiles
    channels: int
    outputs: int
    positions_inside: bool
    unrolled: int
    group: int

    @property
    def column_blocks(self) -> int:
        return -(-self.outputs // self.channels)

    def __str__(self) -> str:
        inside = "positions" if self.positions_inside else "channels"
        return f"{self.tiles.rows} by {self.channels}, {inside} inside"


def vnni_candidates(work: Contraction, isa: Isa) -> list[VnniBlocking]:
    """All blockings of a contraction that the registers allow."""
    lanes = isa.vector_bits // 32
    registers = 32 if isa.vector_bits == 512 else 16
    found = []
    for vectors in range(1, 9 if registers == 32 else 5):
        channels = vectors * lanes
        if vectors > 1 and channels - lanes >= work.outputs:
            break
        spare = vectors * Dot(isa).vectors + (2 if Dot(isa).vnni else 4)
        most = min((registers - spare) // (vectors * work.planes), 16)
        if most < 1:
            break
        sizes = range(most, max(1, most - 4) - 1, -1)
        cuts = [positions.tiles(work.shape, work.strides, rows, even=False) for rows in sizes]
        for cut in {cut.rows: cut for cut in cuts}.values():
            per_step = cut.rows * vectors * work.planes
            unrolled, group = max(1, 288 // per_step), max(1, 48 // per_step)
            for inside in (True,) if work.packing else (True, False):  # packed weights are unpacked once per group
                found.append(VnniBlocking(cut, channels, work.outputs, inside, unrolled, group))
    return found


def vnni_cycles(work: Contraction, isa: Isa, b: VnniBlocking) -> float:
    """Estimated cycles: two products or two loads a cycle, five cycles until a product can be added to."""
    dot = Dot(isa)
    vectors, rows = b.channels // dot.lanes, b.tiles.rows * work.planes
    steps = sum(-(-r.length // 4) for r in work.runs)
    operations = 1 if dot.vnni else 4
    multiply = max(rows * vectors * operations / 2 + (0 if dot.vnni else rows), 5)
    load = (rows + vectors * dot.vectors) / 2
    compute = steps * (max(multiply, load) * 1.06 + 1.0)
    requantize = b.tiles.rows * vectors * (5.0 if work.residual else 3.5) + 12
    panel, whole = (work.depth * n * dot.vectors for n in (b.channels, work.outputs))
    held = panel if b.positions_inside else whole
    if held > L1_BYTES:
        compute = max(compute, panel / L2_BYTES)
    if whole > STREAMED and not b.positions_inside:  # then weights are not asked for a block ahead
        compute += max(0.0, panel / L3_BYTES - compute) / (b.tiles.count if held < L2_HELD else 1)
    inputs = prod(work.shape) * work.depth / max(1, len(work.runs))
    reread = inputs * (b.column_blocks - 1) / L2_BYTES if b.positions_inside and inputs > L1_BYTES else 0.0
    return b.tiles.count * b.column_blocks * (compute + requantize) + 0.5 * reread + _unpacking(work, isa, b)


def _unpacking(work: Contraction, isa: Isa, b: VnniBlocking) -> float:
    """Cycles to unpack weights below 8 bits: once for each block of channels, or at every tile of positions."""
    if work.packing is None:
        return 0.0
    vectors = b.column_blocks * work.depth * b.channels * Dot(isa).vectors / (4 * Dot(isa).lanes)
    return vectors * (UNPACK_CYCLES if b.tiles.count >= UNPACKED_TILES else INLINE_CYCLES * b.tiles.count)


def vnni_blocking(work: Contraction, isa: Isa) -> VnniBlocking:
    """The blocking that the model finds fastest."""
    return min(vnni_candidates(work, isa), key=lambda b: vnni_cycles(work, isa, b))
