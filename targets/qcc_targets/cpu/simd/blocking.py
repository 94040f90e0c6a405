"""How work is cut into blocks: small analytical models of what the units of a core can do."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

from qcc_targets.cpu.simd import positions
from qcc_targets.cpu.simd.contraction import Contraction, even_chunk, step_offsets
from qcc_targets.cpu.simd.emit import Expr, least
from qcc_targets.cpu.simd.lowbit import UNPACK_CYCLES
from qcc_targets.cpu.simd.tiles import ROW_BYTES, ROWS, Registers

L1_BYTES: Final = 36 << 10
"""What of the first-level cache a block may count on."""
L2_BYTES: Final = 40
"""Bytes per cycle from the second-level cache."""
LINE: Final = 64
"""Bytes of a cache line."""
STREAMED: Final = 256 << 10
"""Bytes of weights from which on a network likely keeps them outside of the second-level cache."""


@dataclass(frozen=True, slots=True)
class AmxBlocking:
    """Blocks of ``registers.rows`` tiles of positions by ``channels`` output channels.

    With ``positions_inside`` the blocks of one group of channels follow each other, and its weights
    stay in the cache; otherwise those of one group of positions do, and its input stays.
    """

    tiles: positions.Tiles | positions.PaddedTiles
    registers: Registers
    channels: int
    outputs: int
    chunk: int
    positions_inside: bool
    planes: int = 1
    """Bytes per code of the input: the planes of a tile of positions take a row of accumulators each."""

    @property
    def rows(self) -> int:
        """Tiles of positions in a block."""
        return self.registers.rows // self.planes

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each column of accumulator tiles."""
        return tuple(min(ROWS, self.channels - at) for at in range(0, self.channels, ROWS))

    @property
    def row_blocks(self) -> int:
        return -(-self.tiles.count // self.rows)

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
        """Tile of positions number ``row`` of a block; the last block overlaps where it must."""
        first = row_block * self.rows
        return (least(first, self.tiles.count - self.rows) if self.tiles.count % self.rows else first) + row

    def __str__(self) -> str:
        inside = "positions" if self.positions_inside else "channels"
        return f"{self.rows}x{self.tiles.rows} by {self.channels}, k {self.chunk}, {inside} inside"


def amx_candidates(work: Contraction) -> list[AmxBlocking]:
    """All blockings of a contraction that the registers allow."""
    found = []
    cut = positions.tiles(work.shape, work.strides, ROWS)
    found += _planes(work)
    chunk = even_chunk(work.runs, ROW_BYTES)
    widths = [work.outputs] if work.outputs <= ROWS else [16, 32, 48, 64, 80]
    if work.outputs <= 4 * ROWS:
        # Two planes of the input need twice the registers: then blocks may have to overlap.
        even = [w for w in widths if w < work.outputs and (work.outputs % w == 0 or work.planes > 1)]
        widths = [*even, work.outputs]
    for channels in dict.fromkeys(w for w in widths if w <= work.outputs):
        columns = -(-channels // ROWS)
        for rows in range(work.planes, 5, work.planes):
            registers = Registers.fitting(rows, columns, channels % ROWS != 0)
            if rows > cut.count * work.planes or registers is None or rows * columns > 5:
                continue
            for inside in (True,) if work.packing else (True, False):  # packed weights are unpacked once per group
                found.append(AmxBlocking(cut, registers, channels, work.outputs, chunk, inside, work.planes))
    return found


def _planes(work: Contraction) -> list[AmxBlocking]:
    """Blockings by whole small planes."""
    cut = positions.padded_tiles(work.shape, work.strides, ROWS, 5 // work.planes)
    if cut is None:
        return []
    registers = Registers(cut.parts * work.planes, 1)
    channels, chunk = min(ROWS, work.outputs), even_chunk(work.runs, ROW_BYTES)
    return [AmxBlocking(cut, registers, channels, work.outputs, chunk, True, work.planes)]


def amx_cycles(work: Contraction, b: AmxBlocking) -> float:
    """Estimated cycles of a contraction.

    From measurements on Sapphire Rapids: a product takes as many cycles as its tile has rows, at
    least 8.5 and nearly as many as its depth takes 32-bit words, and 52 until its result is there;
    more than four tile registers cost where another thread shares the core. A tile load takes half a
    cycle a row, a whole one where rows straddle cache lines; a tile store, somewhat over a cycle a
    row, overlaps neither. The requantization runs beside all three, though not without friction.
    """
    r, rows = b.registers, b.tiles.rows
    steps = len(step_offsets(work.runs, b.chunk))
    product = max(rows, 0.9 * b.chunk / 4, 8.5)
    split = 1 + (b.tiles.pitch % ROW_BYTES + b.chunk > ROW_BYTES)
    multiply = steps * max(r.rows * r.columns * product, 32) * (1 + 0.15 * max(0, r.used - 4))
    load = steps * (r.rows * rows * split + r.columns * b.chunk / 4) * 0.5
    tile_unit = max(multiply, load) + r.rows * r.columns * rows * 1.2
    requantize = b.rows * rows * b.channels / 16 * (_vector_cycles(work, b) + (2.0 if work.residual else 0.0))
    fetch = _fetched(work, b) / L2_BYTES
    longest = max(tile_unit, requantize, fetch)
    block = longest + 0.12 * (tile_unit + requantize + fetch - longest) + 12
    unpack = UNPACK_CYCLES * b.column_blocks * work.depth * b.channels / ROW_BYTES if work.packing else 0.0
    return (b.blocks + 1) * block + tile_unit + requantize + unpack + 300


def _vector_cycles(work: Contraction, b: AmxBlocking) -> float:
    """Cycles to requantize 16 results without a residual: arithmetic, and stores beyond one for four such vectors."""
    dense = b.tiles.offset(1, 1) == b.channels if b.tiles.rows > 1 else False
    pieces = 1 if dense or b.channels % ROW_BYTES == 0 else max(2, ROW_BYTES // b.channels)
    return 3.6 + 0.4 * (pieces - 1)


def _fetched(work: Contraction, b: AmxBlocking) -> float:
    """Bytes that a block of work brings from the second-level cache, on average."""
    taps = max(1, len(work.runs))
    weights = work.depth * b.channels
    inputs = b.registers.rows * b.tiles.rows * work.depth / taps
    held, passing = (weights, inputs) if b.positions_inside else (inputs * taps, weights)
    rest = work.depth * work.outputs if not b.positions_inside else prod(work.shape) * work.depth / taps
    streamed = passing if rest > L1_BYTES - held else 0.0
    return streamed + (held if held > L1_BYTES else 0.0)
