"""How work is cut into blocks: small analytical models of what the units of a core can do."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from qcc_targets.cpu.simd import positions
from qcc_targets.cpu.simd.contraction import Contraction, even_chunk, step_offsets
from qcc_targets.cpu.simd.emit import Expr, least
from qcc_targets.cpu.simd.tiles import ROW_BYTES, ROWS, Registers


@dataclass(frozen=True, slots=True)
class AmxBlocking:
    """Blocks of ``registers.rows`` tiles of positions by ``channels`` output channels.

    With ``positions_inside`` the blocks of one group of channels follow each other, and its weights
    stay in the cache; otherwise those of one group of positions do, and its input stays.
    """

    tiles: positions.Tiles
    registers: Registers
    channels: int
    outputs: int
    chunk: int
    positions_inside: bool

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each column of accumulator tiles."""
        return tuple(min(ROWS, self.channels - at) for at in range(0, self.channels, ROWS))

    @property
    def row_blocks(self) -> int:
        return -(-self.tiles.count // self.registers.rows)

    @property
    def column_blocks(self) -> int:
        return -(-self.outputs // self.channels)

    @property
    def blocks(self) -> int:
        return self.row_blocks * self.column_blocks

    def split(self, number: Expr) -> tuple[Expr, Expr]:
        """The block of positions and the block of channels that block ``number`` is."""
        if self.positions_inside:
            return number % self.row_blocks, number // self.row_blocks
        return number // self.column_blocks, number % self.column_blocks

    def tile(self, row_block: Expr, row: int) -> Expr:
        """The tile of positions for a row of accumulators; the last block overlaps where it must."""
        rows = self.registers.rows
        first = row_block * rows
        return (least(first, self.tiles.count - rows) if self.tiles.count % rows else first) + row

    def __str__(self) -> str:
        r = self.registers
        inside = "positions" if self.positions_inside else "channels"
        return f"{r.rows}x{self.tiles.rows} by {self.channels}, k {self.chunk}, {inside} inside"


def amx_candidates(work: Contraction) -> list[AmxBlocking]:
    """All blockings of a contraction that the registers allow."""
    found = []
    chunk = even_chunk(work.runs, ROW_BYTES)
    cut = positions.tiles(work.shape, work.strides, ROWS)
    widths = [work.outputs] if work.outputs <= ROWS else [16, 32, 48, 64, 80]
    if work.outputs <= 4 * ROWS:
        widths = [w for w in widths if w < work.outputs and work.outputs % w == 0] + [work.outputs]
    for channels in dict.fromkeys(w for w in widths if w <= work.outputs):
        columns = -(-channels // ROWS)
        for rows in range(1, 5):
            if rows > cut.count or not Registers.fits(rows, columns) or rows * columns > 5:
                continue
            for inside in (True, False):
                found.append(AmxBlocking(cut, Registers(rows, columns), channels, work.outputs, chunk, inside))
    return found


def amx_cycles(work: Contraction, b: AmxBlocking) -> float:
    """Estimated cycles of a contraction.

    From measurements on Sapphire Rapids: a product takes as many cycles as its tile has rows, at
    least 8.5; a tile load half a cycle a row; a tile store one cycle a row; the requantization 3
    cycles for 16 results. Tiles, loads and vectors overlap, though not perfectly.
    """
    r, rows = b.registers, b.tiles.rows
    steps = len(step_offsets(work.runs, b.chunk))
    product = max(rows, 0.8 * b.chunk / 4, 8.5)
    split = 2 if (b.tiles.pitch % ROW_BYTES or b.chunk % ROW_BYTES) and b.chunk > 16 else 1
    multiply = steps * r.rows * r.columns * product
    load = steps * (r.rows * rows * 0.5 * split + r.columns * b.chunk / 4 * 0.5)
    positions_ = r.rows * rows
    vectors = positions_ * b.channels / 16
    requantize = vectors * (4.5 if work.residual else 3.1) + r.rows * r.columns * 4
    store = r.rows * r.columns * ROWS
    longest = max(multiply, load, requantize, store)
    rest = multiply + load + requantize + store - longest
    block = longest + 0.15 * rest + 25
    weights = work.depth * work.outputs
    inputs = prod(work.shape) * work.depth / max(1, len(work.runs))
    repeated = weights * (b.row_blocks - 1) if not b.positions_inside else inputs * (b.column_blocks - 1)
    held = weights if not b.positions_inside else inputs
    traffic = repeated / 40 if held > 32 << 10 else 0.0
    return b.blocks * block + (multiply + requantize) + 0.5 * traffic


def amx_blocking(work: Contraction) -> AmxBlocking:
    """The blocking that the model finds fastest."""
    return min(amx_candidates(work), key=lambda b: amx_cycles(work, b))
