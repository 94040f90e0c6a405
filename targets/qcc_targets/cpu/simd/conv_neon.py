"""Convolutions and matrix products on AArch64: accumulators stay in registers, input comes 16 bytes at a time.

A block is some positions by some vectors of output channels. ``sdot`` and ``usdot`` multiply four bytes
of one position, a lane of what was loaded, with the weights of four channels; ``usmmla`` eight bytes of
two positions with the weights of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, Kernel, Pointers, Site, pack, primitive
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.blocking_neon import VECTOR, WRITTEN_OUT, NeonBlocking
from qcc_targets.cpu.simd.contraction import Contraction, channel_blocks, pack_weights
from qcc_targets.cpu.simd.dot_neon import NeonDot
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue_neon import LANES, NeonEpilogue
from qcc_targets.cpu.simd.flat import FlatBlock
from qcc_targets.cpu.simd.operands import finish_block, open_tensors


def build(site: Site, isa: Isa, work: Contraction, blocking: NeonBlocking) -> Kernel:
    """The kernel of the contraction ``work`` that ``site`` is."""
    return _Template(site, isa, work, blocking).build()


@dataclass(frozen=True, slots=True)
class _Operands:
    """The buffers of a kernel."""

    tensors: tuple[Memory, ...]
    weights: Memory
    constants: Memory
    runs: Memory
    begins: Memory


@dataclass(frozen=True, slots=True)
class _Template:
    site: Site
    isa: Isa
    work: Contraction
    blocking: NeonBlocking

    @property
    def dot(self) -> NeonDot:
        return NeonDot(self.isa, self.work.signed)

    @property
    def block(self) -> FlatBlock:
        b = self.blocking
        epilogue = NeonEpilogue(self.isa, self.work.requant)
        return FlatBlock(epilogue, b.tiles.rows, b.channels, min(b.channels, self.work.outputs))

    @property
    def rows(self) -> int:
        """Rows of input bytes: positions, once for each plane of their codes."""
        return self.work.planes * self.blocking.tiles.rows

    @property
    def steps(self) -> int:
        """Products of depth per run; runs differ in length only by what is padded."""
        return -(-max(r.length for r in self.work.runs) // self.blocking.step)

    @property
    def group(self) -> int:
        """Steps that one load of input serves."""
        return VECTOR // self.blocking.step

    def build(self) -> Kernel:
        block, channels = self.block, channel_blocks(self.work.outputs, self.blocking.channels)
        offsets = np.array([r.offset for r in self.work.runs], np.int32)
        begins = np.zeros(0, np.int32) if self.work.begin is None else block.begins(self.work.begin, channels)
        blob, at = pack(self._weights(channels), block.constants(channels), offsets, begins)
        site, split = self.site, self.work.split
        scratch = -(-split.size // ALIGN) * ALIGN if split else 0

        def body(pointers: Pointers) -> None:
            tensors = open_tensors(site, self.isa, self.work, pointers)
            dtypes = ("int8", "int64", "int32", "int32")
            constants = [emit.memory(pointers.constants, d, offset=a) for d, a in zip(dtypes, at, strict=True)]
            self._blocks(_Operands(tensors, *constants))

        func = primitive(site.inputs, site.output, body, plain=True)
        return Kernel(f"{site.op.kind[1:]}.{self.isa.name}[{self.blocking}]", func, blob, scratch)

    def _weights(self, channels: NDArray[np.int64]) -> NDArray[np.int8]:
        """Weights as [blocks, runs, steps, records, 16]."""
        width = VECTOR // self.blocking.step
        columns = channels.reshape(len(channels), -1, width)
        packed = pack_weights(self.work.runs, self.blocking.step, columns)
        return packed.swapaxes(3, 4)  # a channel's bytes side by side

    def _blocks(self, operands: _Operands) -> None:
        b = self.blocking
        outer, inner = (b.column_blocks, b.tiles.count) if b.positions_inside else (b.tiles.count, b.column_blocks)
        with emit.loop(outer) as first, emit.loop(inner) as second:
            tile, column = (second, first) if b.positions_inside else (first, second)
            base = emit.bind(b.tiles.base(0, tile) + self.work.starts[0])
            acc = self._in_order(self._accumulate(operands, base, column))
            finish_block(self.work, b, self.block, operands, acc, tile, column)

    def _accumulate(self, operands: _Operands, base: Expr, column: Expr) -> list[Expr]:
        """The accumulators of a block: [inputs * records], as the products leave them."""
        runs, records = self.work.runs, self.steps * self.blocking.records
        count = self.blocking.inputs(self.work.planes) * self.blocking.records
        panel = column * (len(runs) * records)
        acc = [emit.splat("int32", 0, LANES)] * count
        if self.steps * len(runs) * count <= WRITTEN_OUT:
            for number, run in enumerate(runs):
                acc = self._run(operands, acc, base + run.offset, panel + number * records, self.steps)
            return acc
        variables = [emit.local("int32", LANES) for _ in acc]
        for variable in variables:
            emit.store(variable, 0, emit.splat("int32", 0, LANES), LANES)

        def looped(first: Expr, record: Expr, steps: int) -> None:
            values = [emit.load(v, 0, LANES) for v in variables]
            for variable, value in zip(variables, self._run(operands, values, first, record, steps), strict=True):
                emit.store(variable, 0, value, LANES)

        unit = self.group * max(1, WRITTEN_OUT // 2 // (count * self.group))
        whole, rest = divmod(self.steps, unit)
        with emit.loop(len(runs)) as run:
            first = emit.bind(base + emit.scalar(operands.runs, run)) if len(runs) > 1 else base + runs[0].offset
            record = emit.bind(panel + run * records)
            if whole:
                with emit.loop(whole) as number:
                    bytes_, vectors = unit * self.blocking.step, unit * self.blocking.records
                    looped(first + number * bytes_, record + number * vectors, unit)
            if rest:
                done = whole * unit
                looped(first + done * self.blocking.step, record + done * self.blocking.records, rest)
        return [emit.load(v, 0, LANES) for v in variables]

    def _run(self, operands: _Operands, acc: list[Expr], first: Expr, record: Expr, steps: int) -> list[Expr]:
        """The accumulators after ``steps`` steps, whose input begins at ``first`` and weights at ``record``."""
        b, acc = self.blocking, list(acc)
        multiply = self.dot.multiply if b.matrix else self._lane
        for start in range(0, steps, self.group):
            factors = self._factors(operands, first + start * b.step)
            for step in range(start, min(start + self.group, steps)):
                for j in range(b.records):
                    weights = emit.load(operands.weights, (record + step * b.records + j) * VECTOR, VECTOR)
                    for i, codes in enumerate(factors[step - start]):
                        acc[i * b.records + j] = multiply(acc[i * b.records + j], codes, weights)
        return acc

    def _lane(self, acc: Expr, codes: Expr, weights: Expr) -> Expr:
        return self.dot.add(acc, (codes,), (weights,))

    def _factors(self, operands: _Operands, first: Expr) -> list[list[Expr]]:
        """Sixteen bytes of every row from ``first`` on, as factors for each of ``group`` steps."""
        loaded = [self._row(operands, first, row) for row in range(self.rows)]
        if not self.blocking.matrix:
            words = [emit.bind(emit.bits("int32x4", v)) for v in loaded]
            return [[emit.bits("uint8x16", emit.shuffle([w], [step] * LANES)) for w in words] for step in range(4)]
        halves = [emit.bind(emit.bits("int64x2", v)) for v in loaded]
        pairs = [(halves[row], halves[min(row + 1, self.rows - 1)]) for row in range(0, self.rows, 2)]
        return [[emit.bits("uint8x16", emit.shuffle(pair, [step, 2 + step])) for pair in pairs] for step in (0, 1)]

    def _row(self, operands: _Operands, first: Expr, row: int) -> Expr:
        plane, position = divmod(row, self.blocking.tiles.rows)
        at = position * self.blocking.tiles.pitch + (plane * self.work.split.pitch if self.work.split else 0)
        return self.dot.operand(emit.load(operands.tensors[0], first + at, VECTOR))[0]

    def _in_order(self, acc: list[Expr]) -> list[Expr]:
        """The accumulators as [rows * vectors], four channels of one position each."""
        return list(self._untangled(acc)) if self.blocking.matrix else acc

    def _untangled(self, acc: list[Expr]) -> Iterator[Expr]:
        records = self.blocking.records
        for row in range(self.rows):
            line = acc[row // 2 * records : (row // 2 + 1) * records]
            order = [2 * (row % 2) + at for at in (0, 1, 4, 5)]
            for pair in zip(line[0::2], line[1::2], strict=True):
                yield emit.shuffle(pair, order)
