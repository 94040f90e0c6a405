"""Depthwise convolutions: four rows are interleaved byte by byte, and one dot product takes four taps at once.

A 32-bit lane then holds one channel of four vertically adjacent pixels. One interleaving of a
column serves every window that the column is in and, with the weights shifted by a byte, the next
row of results.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, pack, primitive
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.dot import Dot
from qcc_targets.cpu.simd.dot_neon import dot, offset
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue import Constants
from qcc_targets.cpu.simd.epilogue_neon import epilogue
from qcc_targets.cpu.simd.flat import FlatBlock, Place
from qcc_targets.cpu.simd.requant import Requant, fold

COLUMNS = 8
"""Most columns of results that a block has."""


def build(site: Site, isa: Isa) -> Kernel | None:
    """The kernel of an ``iconv2d`` whose groups have one input and one output channel each."""
    if not {"avx2", "dotprod"} & isa.features or not _covered(site):
        return None
    weights = site.array(1).astype(np.int64) - site.zero_point(1)
    residual = 4 if len(site.op.operands) > 4 else None
    requant = fold(site, weights, residual=residual, wide_residual="ifma" in isa, offset=offset(isa, "u8"))
    if requant is None or weights.min() < -128 or weights.max() > 127:
        return None
    return _Template(site, isa, weights[:, 0], requant).build()


def _covered(site: Site) -> bool:
    views = [site.view(0), site.output, *([site.view(4)] if len(site.op.operands) > 4 else [])]
    outputs, inputs = site.array(1).shape[:2]
    depthwise = inputs == 1 and outputs == site.op.int_attr("groups") > 1
    return depthwise and all(v.dtype == "u8" and v.strides[1] == 1 for v in views)


@dataclass(frozen=True)
class _Chunk:
    """``count`` times ``channels`` channels from ``start`` on: whole vectors, of which ``valid`` lanes hold results."""

    start: int
    channels: int
    valid: int
    count: int


@dataclass(frozen=True)
class _Template:
    site: Site
    isa: Isa
    weights: NDArray[np.int64]
    requant: Requant

    @property
    def dot(self) -> Dot:
        return dot(self.isa)

    # Geometry

    @property
    def x(self) -> View:
        return self.site.view(0)

    @property
    def y(self) -> View:
        return self.site.output

    @cached_property
    def rows(self) -> int:
        """Rows of results that share an interleaving."""
        dense = self.site.op.ints_attr("strides")[0] == 1 and self.site.op.ints_attr("dilations")[0] == 1
        return 2 if dense and self.y.height > 1 and self.weights.shape[1] > 1 else 1

    @cached_property
    def columns(self) -> int:
        blocks = -(-self.y.width // COLUMNS)
        return -(-self.y.width // blocks)

    @cached_property
    def taps(self) -> list[list[int]]:
        """Input rows, from the first that a block reads, in groups of four."""
        (stride, _), (dilation, _) = self.site.op.ints_attr("strides"), self.site.op.ints_attr("dilations")
        needed = sorted({o * stride + k * dilation for o in range(self.rows) for k in range(self.weights.shape[1])})
        return [needed[at : at + 4] for at in range(0, len(needed), 4)]

    @cached_property
    def chunks(self) -> list[_Chunk]:
        whole, lanes = 4 * self.dot.lanes, self.dot.lanes
        count, rest = divmod(self.requant.channels, whole)
        chunks = [_Chunk(0, whole, whole, count)] if count else []
        return chunks + ([_Chunk(count * whole, -(-rest // lanes) * lanes, rest, 1)] if rest else [])

    # The kernel

    def build(self) -> Kernel:
        fused = "ifma" in self.isa and self.requant.narrow_products
        ending = epilogue(self.isa, self.requant.started() if fused else self.requant, fused)
        arrays: list[NDArray[np.generic]] = []
        blocks = []
        for chunk in self.chunks:
            block = FlatBlock(ending, self.columns, chunk.channels, chunk.valid)
            channels = chunk.start + np.arange(chunk.count)[:, None] * chunk.channels + np.arange(chunk.channels)
            channels = np.where(channels < self.requant.channels, channels, -1)
            order = block.columns(channels).reshape(chunk.count, -1, ending.lanes)
            starts = np.where(order < 0, 0, self.requant.start[np.maximum(order, 0)]).astype(np.int32)
            arrays += [self._pack(order), block.constants(channels), starts]
            blocks.append(block)
        blob, at = pack(*arrays)
        site = self.site

        def body(pointers: Pointers) -> None:
            tensors = [
                emit.memory(p, v.tvm_dtype, v.alignment) for p, v in zip(pointers.inputs, site.inputs, strict=True)
            ]
            output = emit.memory(pointers.output, self.y.tvm_dtype, self.y.alignment)
            for number, (chunk, block) in enumerate(zip(self.chunks, blocks, strict=True)):
                weights, constants, starts = (
                    emit.memory(pointers.constants, dtype, offset=start)
                    for dtype, start in zip(
                        (self.dot.dtype, "int64", "int32"), at[3 * number : 3 * number + 3], strict=True
                    )
                )
                self._chunk(chunk, block, _Operands(tensors, output, weights, constants, starts))

        func = primitive(site.inputs, site.output, body, plain=True)
        return Kernel(f"depthwise.{self.isa.name}[{self.rows}x{self.columns}]", func, blob)

    def _pack(self, order: NDArray[np.int64]) -> NDArray[np.generic]:
        """Weights as [chunk, row of results, group of rows, column of the window, vector] products."""
        stride, dilation = self.site.op.ints_attr("strides")[0], self.site.op.ints_attr("dilations")[0]
        padded = np.concatenate([self.weights, np.zeros_like(self.weights[:1])])
        per_lane = padded[order]  # [chunk, vector, lane, kh, kw]
        products = []
        for result in range(self.rows):
            for group in self.taps:
                bytes_ = np.zeros((*order.shape, per_lane.shape[-1], 4), np.int64)
                for byte, row in enumerate(group):
                    tap, off = divmod(row - result * stride, dilation)
                    if not off and 0 <= tap < self.weights.shape[1]:
                        bytes_[..., byte] = per_lane[..., tap, :]
                products.append(bytes_.transpose(0, 3, 1, 2, 4))  # [chunk, kw, vector, lane, 4]
        stacked = np.stack(products, axis=1).astype(np.int8)
        return self.dot.pack(stacked)

    def _chunk(self, chunk: _Chunk, block: FlatBlock, operands: _Operands) -> None:
        """All results of the channels of ``chunk``."""
        down, across = -(-self.y.height // self.rows), -(-self.y.width // self.columns)
        with emit.loop(self.y.samples) as sample, emit.loop(chunk.count) as number:
            constants = block.load_constants(operands.constants, number)
            with emit.loop(down) as i, emit.loop(across) as j:
                row = emit.least(i * self.rows, self.y.height - self.rows)
                column = emit.least(j * self.columns, self.y.width - self.columns)
                position = (sample, chunk.start + number * chunk.channels, emit.bind(row), emit.bind(column))
                _Block(self, block, operands, number, position).emit(constants)


@dataclass(frozen=True)
class _Operands:
    tensors: list[Memory]
    output: Memory
    weights: Memory
    constants: Memory
    starts: Memory


@dataclass(frozen=True)
class _Block:
    """``rows`` by ``columns`` results of one chunk of channels."""

    template: _Template
    flat: FlatBlock
    operands: _Operands
    chunk: Expr
    position: tuple[Expr, Expr, Expr, Expr]
    interleaved: dict[tuple[int, int], list[tuple[Expr, ...]]] = field(default_factory=dict)

    @cached_property
    def dot(self) -> Dot:
        return self.template.dot

    @cached_property
    def vectors(self) -> int:
        return self.flat.channels // self.dot.lanes

    @cached_property
    def base(self) -> Expr:
        """The first input element that the block reads."""
        x, op = self.template.x, self.template.site.op
        (sh, sw), (top, left) = op.ints_attr("strides"), op.ints_attr("pads")[:2]
        sample, channel, row, column = self.position
        corner = x.index(sample, channel, row * sh, column * sw)
        return emit.bind(corner - (top * x.row_stride + left * x.pixel_stride))

    def emit(self, constants: list[Constants]) -> None:
        t = self.template
        places = [[self._place(view, row) for row in range(t.rows)] for view in (t.y, *t.site.inputs[1:])]
        for group in range(self.flat.groups):
            last = min(4 * group + 4, t.columns * self.vectors)
            acc = self._accumulate(list(range(4 * group, last)))
            for row in range(t.rows):
                target = (self.operands.output, places[0][row])
                residual = (self.operands.tensors[1], places[1][row]) if len(places) > 1 else None
                self.flat.group(group, partial(self._halves, acc[row]), constants, target, residual)

    def _halves(self, acc: dict[int, Expr], vector: int) -> tuple[Expr, Expr]:
        return self.flat.epilogue.halves(acc[vector])

    def _place(self, view: View, row: int) -> Place:
        sample, channel, first, column = self.position
        base = emit.bind(view.index(sample, channel, first + row, column))
        return lambda position: (0, base, position * view.pixel_stride)

    def _accumulate(self, vectors: list[int]) -> list[dict[int, Expr]]:
        """The accumulators of flat ``vectors``, per row of results; one product for all, then the next."""
        t = self.template
        (_, stride), (_, dilation) = t.site.op.ints_attr("strides"), t.site.op.ints_attr("dilations")
        width = t.weights.shape[2]
        acc: list[dict[int, Expr]] = [{v: self._start(v % self.vectors) for v in vectors} for _ in range(t.rows)]
        for group in range(len(t.taps)):
            for tap in range(width):
                for row in range(t.rows):
                    if not self._reaches(row, group):
                        continue
                    for v in vectors:
                        column, part = divmod(v, self.vectors)
                        rows = self._column(column * stride + tap * dilation, group)[part]
                        product = ((self.chunk * t.rows + row) * len(t.taps) + group) * width + tap
                        weights = self.dot.load(self.operands.weights, product * self.vectors + part)
                        acc[row][v] = self.dot.add(acc[row][v], rows, weights)
        return acc

    def _start(self, part: int) -> Expr:
        lanes = self.dot.lanes
        if not self.flat.epilogue.fused:
            return emit.splat("int32", 0, lanes)
        return emit.load(self.operands.starts, (self.chunk * self.vectors + part) * lanes, lanes)

    def _reaches(self, row: int, group: int) -> bool:
        """Whether a row of results reads any of a group of input rows."""
        t = self.template
        stride, dilation = t.site.op.ints_attr("strides")[0], t.site.op.ints_attr("dilations")[0]
        own = {row * stride + k * dilation for k in range(t.weights.shape[1])}
        return bool(own & set(t.taps[group]))

    def _column(self, column: int, group: int) -> list[tuple[Expr, ...]]:
        """The interleaved rows of ``group`` at an input column, one operand per vector."""
        key = (column, group)
        if key not in self.interleaved:
            x, rows = self.template.x, self.template.taps[group]
            offsets = [row * x.row_stride + column * x.pixel_stride for row in rows]
            offsets += [offsets[-1]] * (4 - len(offsets))  # their weights are zero
            words = (
                self._unpacked(offsets)
                if self.flat.packed
                else [self._gathered(offsets, v) for v in range(self.vectors)]
            )
            self.interleaved[key] = [self.dot.operand(w) for w in words]
        return self.interleaved[key]

    def _unpacked(self, offsets: list[int]) -> list[Expr]:
        """Four rows of a full vector of bytes, interleaved within 128-bit blocks."""
        lanes = self.dot.lanes
        rows = [emit.load(self.operands.tensors[0], self.base + at, 4 * lanes) for at in offsets]
        pairs = [[_unpack(rows[a], rows[a + 1], 4 * lanes, 16, high) for high in (0, 1)] for a in (0, 2)]
        words = [[emit.bind(emit.bits(f"int16x{2 * lanes}", p)) for p in pair] for pair in pairs]
        return [
            emit.bind(emit.bits(f"int32x{lanes}", _unpack(words[0][side], words[1][side], 2 * lanes, 8, high)))
            for side in (0, 1)
            for high in (0, 1)
        ]

    def _gathered(self, offsets: list[int], vector: int) -> Expr:
        """Four rows of one vector of channels, interleaved in order."""
        lanes = self.dot.lanes
        rows = [emit.load(self.operands.tensors[0], self.base + at + vector * lanes, lanes) for at in offsets]
        pairs = [emit.shuffle(rows[a : a + 2], range(2 * lanes)) for a in (0, 2)]
        order = [row * lanes + channel for channel in range(lanes) for row in range(4)]
        return emit.bind(emit.bits(f"int32x{lanes}", emit.shuffle(pairs, order)))


def _unpack(a: Expr, b: Expr, size: int, block: int, high: int) -> Expr:
    """Elements of two vectors in turn, from the lower or upper half of every ``block`` of their ``size``."""
    order = [
        side * size + start + high * block // 2 + element
        for start in range(0, size, block)
        for element in range(block // 2)
        for side in (0, 1)
    ]
    return emit.shuffle([a, b], order)
