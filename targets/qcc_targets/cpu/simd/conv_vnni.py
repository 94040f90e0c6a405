"""Convolutions and matrix products with dot-product instructions: accumulators stay in registers.

A block is some positions by some vectors of output channels. Every step of its depth broadcasts
four bytes of each position and multiplies them with the weights of all channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, Kernel, Pointers, Site, pack, primitive
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.blocking import L1_BYTES, LINE, STREAMED
from qcc_targets.cpu.simd.blocking_vnni import VnniBlocking
from qcc_targets.cpu.simd.contraction import Contraction, channel_blocks, pack_weights
from qcc_targets.cpu.simd.dot import Dot
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue import Epilogue
from qcc_targets.cpu.simd.flat import FlatBlock
from qcc_targets.cpu.simd.lowbit import UNPACKED_TILES
from qcc_targets.cpu.simd.lowbit_panel import Panel
from qcc_targets.cpu.simd.operands import finish_block, open_tensors

STEP = 4
"""Bytes of depth per product."""

STREAMED_BYTES = 1 << 20
"""Weights from which on a product with one tile of positions is held to read them from memory."""

Distances = tuple[tuple[int, bool], ...]
"""Bytes ahead of their use at which weights are asked for, and whether into the first-level cache."""

FROM_L2: Final[Distances] = ((4 << 10, True),)
"""For weights in the second-level cache or not much further away: 2 to 8 KiB take a third off a 3x3 convolution of
7 x 7 x 512. The processor's own prefetching alone does not fill the bandwidth, neither here nor below."""

FROM_MEMORY: Final[Distances] = ((8 << 10, True),)
"""For those in memory: 2 to 16 KiB take a third off a product of 4096 x 4096."""

PACKED_FROM_MEMORY: Final[Distances] = ((2 << 10, True), (16 << 10, False))
"""For packed ones, which take longer to use than bytes: in two steps they come another quarter faster."""


def build(site: Site, isa: Isa, work: Contraction, blocking: VnniBlocking) -> Kernel:
    """The kernel of the contraction ``work``, of unsigned or 16-bit inputs, that ``site`` is."""
    return _Template(site, isa, work, blocking).build()


@dataclass(frozen=True, slots=True)
class _Operands:
    """The buffers of a kernel; ``packed`` is what ``weights`` are unpacked from, if they are beforehand."""

    tensors: tuple[Memory, ...]
    weights: Memory
    packed: Memory
    constants: Memory
    starts: Memory
    runs: Memory
    begins: Memory


@dataclass(frozen=True, slots=True)
class _Template:
    site: Site
    isa: Isa
    work: Contraction
    blocking: VnniBlocking

    @property
    def dot(self) -> Dot:
        return Dot(self.isa)

    @property
    def fused(self) -> bool:
        return "ifma" in self.isa and self.work.requant.narrow_products and self.work.split is None

    @property
    def block(self) -> FlatBlock:
        b = self.blocking
        requant = self.work.requant.started() if self.fused else self.work.requant
        valid = min(b.channels, self.work.outputs)
        return FlatBlock(Epilogue(self.isa, requant, self.fused), b.tiles.rows, b.channels, valid)

    @property
    def vectors(self) -> int:
        """Vectors of accumulators per position."""
        return self.blocking.channels // self.dot.lanes

    @property
    def stored(self) -> Panel:
        """The weights as the constants hold them."""
        return Panel(self.dot, self.vectors, self.work.packing)

    @property
    def unpacks(self) -> bool:
        """Whether packed weights are unpacked once per block of channels, not at every tile of positions."""
        return self.work.packing is not None and self.blocking.tiles.count >= UNPACKED_TILES

    @property
    def panel(self) -> Panel:
        """The weights as tiles of positions read them."""
        return Panel(self.dot, self.vectors, None) if self.unpacks else self.stored

    @property
    def run_records(self) -> int:
        """Records of ``panel`` from the beginning of one run to that of the next."""
        records = self.stored.records(self.steps)
        return records * self.stored.steps if self.unpacks else records

    @property
    def ahead(self) -> Distances:
        """How far ahead of their use weights are asked for; nothing where they stay in the first-level cache."""
        size = self.work.depth * self.work.outputs
        if self.blocking.tiles.count == 1:  # they are read but once
            far = PACKED_FROM_MEMORY if self.work.packing else FROM_MEMORY
            return far if size >= STREAMED_BYTES else ()
        return FROM_L2 if size > L1_BYTES and not self.unpacks else ()

    @property
    def lines(self) -> int:
        """Cache lines of the next channels' weights that every step asks for; the positions of a block share in them.

        0 where weights likely are in the second-level cache, or the channels come round too often for it to matter.
        """
        b, whole = self.blocking, self.work.depth * self.work.outputs
        step = self.vectors * self.stored.size // LINE
        if self.work.packing or not b.positions_inside or whole < STREAMED or not 1 < b.tiles.count <= 16 * step:
            return 0
        return -(-step // b.tiles.count)

    @property
    def steps(self) -> int:
        """Products of depth per run; runs differ in length only by what is padded."""
        return -(-max(r.length for r in self.work.runs) // STEP)

    def build(self) -> Kernel:
        b, block, lanes = self.blocking, self.block, self.dot.lanes
        channels = channel_blocks(self.work.outputs, b.channels)
        columns = block.columns(channels).reshape(len(channels), -1, lanes)
        weights = self.stored.pack(pack_weights(self.work.runs, STEP, columns)[:, :, :, 0], len(self.work.runs))
        starts = np.where(columns < 0, 0, self.work.requant.start[np.maximum(columns, 0)]).astype(np.int32)
        offsets = np.array([r.offset for r in self.work.runs], np.int32)
        begins = np.zeros(0, np.int32) if self.work.begin is None else block.begins(self.work.begin, channels)
        blob, at = pack(weights, block.constants(channels), starts, offsets, begins)
        site, split = self.site, self.work.split
        unpacked = -(-split.size // ALIGN) * ALIGN if split else 0
        scratch = self.panel.size * self.vectors * self.run_records * len(self.work.runs) if self.unpacks else 0

        def body(pointers: Pointers) -> None:
            operands = _Operands(
                open_tensors(site, self.isa, self.work, pointers),
                emit.memory(pointers.scratch, self.panel.dtype, offset=unpacked)
                if self.unpacks
                else emit.memory(pointers.constants, self.panel.dtype, offset=at[0]),
                emit.memory(pointers.constants, self.stored.dtype, offset=at[0]),
                emit.memory(pointers.constants, "int64", offset=at[1]),
                emit.memory(pointers.constants, "int32", offset=at[2]),
                emit.memory(pointers.constants, "int32", offset=at[3]),
                emit.memory(pointers.constants, "int32", offset=at[4]),
            )
            outer, inner = (b.column_blocks, b.tiles.count) if b.positions_inside else (b.tiles.count, b.column_blocks)
            with emit.loop(outer) as first:
                if self.unpacks:
                    records = len(self.work.runs) * self.stored.records(self.steps)
                    self.stored.unpack(operands.packed, first * records, records, operands.weights)
                with emit.loop(inner) as second:
                    tile, column = (second, first) if b.positions_inside else (first, second)
                    self._tile(operands, tile, column)

        func = primitive(site.inputs, site.output, body, plain=True)
        name = f"{site.op.kind[1:]}.{self.isa.name}[{b}{self.stored}]"
        return Kernel(name, func, blob, unpacked + scratch)

    def _tile(self, operands: _Operands, tile: Expr, column: Expr) -> None:
        b = self.blocking
        base = emit.bind(b.tiles.base(0, tile) + self.work.starts[0])
        records = self.run_records
        panel = 0 if self.unpacks else column * (len(self.work.runs) * records)
        acc = self._begin(operands, column)
        following = self._following(panel, tile) if self.lines else 0
        if self.steps * len(self.work.runs) <= b.unrolled:
            for number, run in enumerate(self.work.runs):
                for step in range(self.steps):
                    first = base + run.offset + STEP * step
                    acc = self._step(operands, acc, first, panel + number * records, step, following)
        else:
            acc = self._looped(operands, acc, base, panel, following)
        finish_block(self.work, self.blocking, self.block, operands, acc, tile, column)

    def _following(self, panel: Expr, tile: Expr) -> Expr:
        """The cache line of the weights from which on tile ``tile`` asks for its share in the panel behind ``panel``.

        It is that of record 0: a step asks for the lines of its own record from there.
        """
        records = len(self.work.runs) * self.run_records
        end = (panel + records) * (self.vectors * self.stored.size) // LINE
        return emit.bind(end + tile * (records * self.lines) - panel * self.lines)

    def _begin(self, operands: _Operands, column: Expr) -> list[Expr]:
        """The accumulators, [positions * vectors], at their starts."""
        lanes = self.dot.lanes
        if not self.fused:
            return [emit.splat("int32", 0, lanes)] * (self.work.planes * self.blocking.tiles.rows * self.vectors)
        starts = [emit.load(operands.starts, (column * self.vectors + v) * lanes, lanes) for v in range(self.vectors)]
        return starts * self.blocking.tiles.rows

    def _looped(self, operands: _Operands, acc: list[Expr], base: Expr, panel: Expr, following: Expr) -> list[Expr]:
        """All steps of depth as loops over runs and groups of steps, accumulators in variables."""
        lanes, group = self.dot.lanes, self.panel.whole(self.blocking.group)
        variables = [emit.local("int32", lanes) for _ in acc]
        for variable, value in zip(variables, acc, strict=True):
            emit.store(variable, 0, value, lanes)

        def steps(first: Expr, weight: Expr, count: int) -> None:
            values = [emit.load(v, 0, lanes) for v in variables]
            for step in range(count):
                values = self._step(operands, values, first + STEP * step, weight, step, following)
            for variable, value in zip(variables, values, strict=True):
                emit.store(variable, 0, value, lanes)

        whole, rest = divmod(self.steps, group)
        with emit.loop(len(self.work.runs)) as run:
            first = emit.bind(base + emit.scalar(operands.runs, run)) if len(self.work.runs) > 1 else base
            weight = emit.bind(panel + run * self.run_records)
            if whole:
                with emit.loop(whole) as number:
                    steps(first + number * (STEP * group), weight + number * self.panel.records(group), group)
            if rest:
                steps(first + whole * STEP * group, weight + whole * self.panel.records(group), rest)
        return [emit.load(v, 0, lanes) for v in variables]

    def _step(
        self, operands: _Operands, acc: list[Expr], first: Expr, record: Expr, step: int, following: Expr
    ) -> list[Expr]:
        """The accumulators after one product for every position and vector: step ``step`` from ``record`` on."""
        weights = [self.panel.load(operands.weights, record, step, v) for v in range(self.vectors)]
        for distance, near in self.ahead:
            self.panel.ahead(operands.weights, record, step, distance, near=near)
        for line in range(self.lines):
            at = following + (record + step) * self.lines + line
            emit.prefetch(operands.weights, at * (LINE // np.dtype(self.panel.dtype).itemsize), near=False)
        result = []
        tiles, plane = self.blocking.tiles, self.work.split.pitch if self.work.split else 0
        for number in range(self.work.planes * tiles.rows):
            at = tiles.offset(0, number % tiles.rows) + number // tiles.rows * plane
            a = self.dot.spread(operands.tensors[0], first + at)
            known = acc[number * self.vectors : (number + 1) * self.vectors]
            result += [self.dot.add(value, a, w) for value, w in zip(known, weights, strict=True)]
        return result
