"""Convolutions and matrix products on AMX tiles.

A tile of the input is 16 positions of one step of a run, loaded with the positions' pitch, so the
input is read where it lies. Accumulator tiles are stored to scratch memory, and the requantization
of one block is emitted between the instructions of the next: the tile unit and the vector units
then work at the same time, which an out-of-order window alone does not reach.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, Kernel, Pointers, Site, pack, primitive
from qcc_targets.cpu.simd import emit, tiles
from qcc_targets.cpu.simd.blocking import LINE, STREAMED, AmxBlocking
from qcc_targets.cpu.simd.contraction import (
    Contraction,
    channel_blocks,
    pack_weights,
    step_offsets,
)
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue import Constants, Epilogue
from qcc_targets.cpu.simd.flat import FlatBlock, Place
from qcc_targets.cpu.simd.lowbit_tiles import TilePanel
from qcc_targets.cpu.simd.operands import open_tensors

Steps = list[Callable[[], None]]


def build(site: Site, isa: Isa, work: Contraction, blocking: AmxBlocking) -> Kernel:
    """The kernel of the contraction ``work`` that ``site`` is."""
    return _Template(site, isa, work, blocking).build()


@dataclass(frozen=True, slots=True)
class _Operands:
    """The buffers of a kernel; ``packed`` is what the tiles in ``weights`` are unpacked from, if they are."""

    tensors: tuple[Memory, ...]
    config: Memory
    weights: Memory
    packed: Memory | None
    constants: Memory
    begins: Memory
    scratch: Memory


@dataclass(frozen=True, slots=True)
class _Template:
    site: Site
    isa: Isa
    work: Contraction
    blocking: AmxBlocking

    @property
    def block(self) -> FlatBlock:
        b = self.blocking
        return FlatBlock(Epilogue(self.isa, self.work.requant), b.rows * b.tiles.rows, b.channels, b.channels)

    @property
    def plane(self) -> int:
        """int32 elements of the accumulators of one plane of the input."""
        return self.blocking.rows * self.blocking.tiles.rows * self.blocking.channels

    @property
    def half(self) -> int:
        """int32 elements of one of the two scratch buffers: whole groups of vectors, and one vector to read past."""
        return (self.block.groups * 4 + 1) * self.block.lanes + (self.work.planes - 1) * self.plane

    @property
    def panel(self) -> TilePanel | None:
        """Where weights are packed: the tiles of one block of channels."""
        b, packing = self.blocking, self.work.packing
        rows = len(step_offsets(self.work.runs, b.chunk)) * b.registers.columns * b.chunk // 4
        return TilePanel(packing, rows) if packing else None

    def build(self) -> Kernel:
        b, panel = self.blocking, self.panel
        channels = channel_blocks(self.work.outputs, b.channels)
        config = tiles.configuration(b.registers, b.tiles.rows, b.chunk, b.widths)
        columns = self.block.columns(channels)
        padded = np.pad(columns, ((0, 0), (0, b.registers.columns * tiles.ROWS - b.channels)), constant_values=-1)
        weights = pack_weights(self.work.runs, b.chunk, padded.reshape(len(channels), -1, tiles.ROWS))
        stored = panel.pack(weights) if panel else weights
        begin = self.work.begin
        begins = np.zeros(0, np.int32) if begin is None else self.block.begins(begin, channels)
        blob, starts = pack(config, stored, self.block.constants(channels), begins)
        site, split, halves = self.site, self.work.split, -(-2 * self.half * 4 // ALIGN) * ALIGN
        unpacked = halves + (split.size if split else 0)

        def body(pointers: Pointers) -> None:
            operands = _Operands(
                open_tensors(site, self.isa, self.work, pointers, halves),
                emit.memory(pointers.constants, "uint8", offset=starts[0]),
                emit.memory(pointers.scratch, "int8", offset=unpacked)
                if panel
                else emit.memory(pointers.constants, "int8", offset=starts[1]),
                emit.memory(pointers.constants, "uint16", offset=starts[1]) if panel else None,
                emit.memory(pointers.constants, "int64", offset=starts[2]),
                emit.memory(pointers.constants, "int32", offset=starts[3]),
                emit.memory(pointers.scratch, "int32"),
            )
            self._emit(operands)

        func = primitive(site.inputs, site.output, body, plain=True)
        width = f", {panel.packing.bits} bits" if panel else ""
        name = f"{site.op.kind[1:]}.amx[{b}{width}]"
        return Kernel(name, func, blob, unpacked + (panel.size if panel else 0))

    def _emit(self, operands: _Operands) -> None:
        """Three stages in flight: while a block is multiplied, that before is stored, and that before is finished."""
        blocks = self.blocking.blocks
        tiles.configure(operands.config, 0)
        with emit.loop(min(blocks, 2)) as number:
            emit.interleave((self._compute(operands, number), 0))
        if blocks > 2:
            with emit.loop(blocks - 2) as number:
                current = emit.bind(number + 2)
                emit.interleave((self._compute(operands, current), 0), (self._finish(operands, number), 1))
        for row in range(self.blocking.registers.rows):
            for column in range(self.blocking.registers.columns):
                self._store(operands, self._half(blocks - 1), row, column)
        with emit.loop(min(blocks, 2)) as number:
            emit.interleave((self._finish(operands, emit.bind(number + max(blocks - 2, 0))), 0))
        tiles.release()

    def _compute(self, operands: _Operands, number: Expr) -> Steps:
        """The tile instructions of block ``number``; its first products push out the block before."""
        b, registers = self.blocking, self.blocking.registers
        row_block, column_block = b.split(number)
        column_block = self._unpacked(operands, row_block, column_block)
        tops = [self._base(0, b.tile(row_block, row)) for row in range(b.rows)]
        pitch = self.work.split.pitch if self.work.split else 0
        bases = [tops[row % b.rows] + row // b.rows * pitch for row in range(registers.rows)]
        store = partial(self._store, operands, self._half(number + 1))
        offsets = step_offsets(self.work.runs, b.chunk)
        steps: Steps = []
        for index, offset in enumerate(offsets):
            panel = (column_block * len(offsets) + index) * registers.columns
            left = partial(self._load_left, operands, bases, offset)
            right = partial(self._load_right, operands, panel)
            steps += self._step(left, right, None if index else store, apart=len(offsets) == 1)
            if ahead := self._ahead(len(offsets)):
                following = (panel + len(offsets) * registers.columns) * (b.chunk * tiles.ROWS)
                line = following + (row_block * len(offsets) * ahead) * LINE - index * (self._step_bytes - ahead * LINE)
                steps.append(partial(self._prefetch, operands, line, ahead))
        return steps

    @property
    def _step_bytes(self) -> int:
        """Bytes of weights of one step."""
        return self.blocking.registers.columns * self.blocking.chunk * tiles.ROWS

    def _ahead(self, steps: int) -> int:
        """Cache lines of the next channels' weights that each of the ``steps`` of a block asks for ahead of time.

        The blocks of one group of channels share in them. None where weights likely are in the
        second-level cache, or are read so often that it does not matter.
        """
        b = self.blocking
        whole = b.column_blocks * steps * self._step_bytes
        lines = self._step_bytes // LINE
        if self.panel or not b.positions_inside or whole < STREAMED or b.row_blocks > lines:
            return 0
        return -(-lines // b.row_blocks)

    def _prefetch(self, operands: _Operands, first: Expr, lines: int) -> None:
        for line in range(lines):
            emit.prefetch(operands.weights, first + line * LINE)

    def _unpacked(self, operands: _Operands, row_block: Expr, column_block: Expr) -> Expr:
        """Where the tiles of a block of channels are; packed ones are unpacked at its first block of positions."""
        if self.panel is None or operands.packed is None:
            return column_block
        with emit.at_first(row_block):
            self.panel.unpack(operands.packed, column_block, operands.weights)
        return 0

    def _store(self, operands: _Operands, base: Expr, row: int, column: int) -> None:
        b = self.blocking
        at = base + row * b.tiles.rows * b.channels + column * tiles.ROWS
        tiles.store(b.registers.accumulator(row, column), operands.scratch, at, 4 * b.channels)

    def _load_left(self, operands: _Operands, bases: list[Expr], offset: int, row: int) -> None:
        b = self.blocking
        tiles.load(b.registers.left(row), operands.tensors[0], bases[row] + offset, b.tiles.pitch)

    def _load_right(self, operands: _Operands, panel: Expr, column: int) -> None:
        size = self.blocking.chunk * tiles.ROWS
        tiles.load(self.blocking.registers.right(column), operands.weights, (panel + column) * size, tiles.ROW_BYTES)

    def _step(
        self,
        load_left: Callable[[int], None],
        load_right: Callable[[int], None],
        store: Callable[[int, int], None] | None,
        *,
        apart: bool,
    ) -> Steps:
        """One step of depth for all accumulators: the operand that stays is loaded once, first.

        The first step has ``store``, which saves what an accumulator held, and starts it from zero;
        ``apart`` makes it a step of its own, better where there is little to multiply.
        """
        registers = self.blocking.registers
        by_rows = registers.rows <= registers.columns
        inner, outer = (registers.rows, registers.columns) if by_rows else (registers.columns, registers.rows)
        load_inner, load_outer = (load_left, load_right) if by_rows else (load_right, load_left)

        def multiply(row: int, column: int) -> None:
            a, o = (row, column) if by_rows else (column, row)
            accumulator = registers.accumulator(row, column)
            if o == 0:
                load_inner(a)
            if a == 0:
                load_outer(o)
            if store:
                if not apart:
                    store(row, column)
                tiles.zero(accumulator)
            signed = self.work.signed
            tiles.multiply(accumulator, registers.left(row), registers.right(column), signed=signed)

        steps: Steps = []
        for o in range(outer):
            for a in range(inner):
                place = (a, o) if by_rows else (o, a)
                if store and apart:
                    steps.append(partial(store, *place))
                steps.append(partial(multiply, *place))
        return steps

    def _finish(self, operands: _Operands, number: Expr) -> Steps:
        """The requantization of block ``number``, from scratch to the output."""
        b, block = self.blocking, self.block
        row_block, column_block = b.split(number)
        channel = emit.least(column_block * b.channels, self.work.outputs - b.channels)
        constants: list[Constants] = block.load_constants(operands.constants, column_block)
        base = self._half(number)

        def place(tensor: int) -> Place:
            bases = [emit.bind(self._base(tensor, b.tile(row_block, r)) + channel) for r in range(b.rows)]

            def at(position: int) -> tuple[int, Expr, int] | None:
                spot = b.tiles.place(tensor, *divmod(position, b.tiles.rows))
                return None if spot is None else (spot[0], bases[spot[0]], spot[1])

            return at

        target = (operands.tensors[1], place(1))
        residual = (operands.tensors[2], place(2)) if self.work.residual else None

        begins = block.load_begins(operands.begins, column_block) if self.work.split else []

        def halves(vector: int) -> tuple[Expr, Expr]:
            at = base + vector * block.lanes
            if not begins:
                return block.epilogue.apart(operands.scratch, at)
            low, high = (emit.load(operands.scratch, at + plane, block.lanes) for plane in (0, self.plane))
            return block.epilogue.halves(block.epilogue.joined((low, high), begins[vector % block.period]))

        return [partial(block.group, g, halves, constants, target, residual) for g in range(block.groups)]

    def _base(self, tensor: int, tile: Expr) -> Expr:
        return emit.bind(self.blocking.tiles.base(tensor, tile) + self.work.starts[tensor])

    def _half(self, number: Expr) -> Expr:
        """The scratch buffer of a block: neighbours alternate."""
        return number % 2 * self.half
