"""Convolution and matrix products with constant weights, as one loop nest.

Outer loops walk the output pixels; tiles of pixels times output channels accumulate in registers;
reduction loops walk kernel rows, kernel columns and input channels. Weights are packed in the
order in which they are read: [group][block of outputs][reduction][outputs of the block]. Where they are
to be small, those below 8 bits lie densely, and each block unpacks its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic.epilogue import Epilogue, wide
from qcc_targets.cpu.generic.nest import Index, Nest, lanes_for, local, loops, nest, overlays, powers_of_two, vector
from qcc_targets.cpu.generic.packed import Unpacking, narrow, pack_panels
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, buffer, pack, primitive


@dataclass(frozen=True, slots=True)
class Geometry:
    """What is contracted with what; all strides in elements of the tensor they belong to.

    ``pixels`` are the extents of the outer loops, and ``x``, ``r``, ``y`` the strides of the input,
    the residual and the output over them. ``taps`` are the extents of the reduction loops, in the
    order of the weights, and ``tap_strides`` those of the input. Per group, the input advances by
    ``group_step`` and the output by ``outputs`` channels.
    """

    pixels: tuple[int, ...]
    x: tuple[int, ...]
    r: tuple[int, ...]
    y: tuple[int, ...]
    x_offset: int
    taps: tuple[int, ...]
    tap_strides: tuple[int, ...]
    groups: int
    group_step: int
    outputs: int
    r_channel: int
    y_channel: int


@dataclass(frozen=True, slots=True)
class Block:
    """``count`` blocks of ``outputs`` channels, from channel ``start`` of the group on."""

    start: int
    count: int
    outputs: int
    lanes: int

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Vectors of at most ``lanes`` channels, of powers of two, as (first channel, width)."""
        whole = self.outputs - self.outputs % self.lanes
        full = [(first, self.lanes) for first in range(0, whole, self.lanes)]
        return full + [(whole + first, width) for first, width in powers_of_two(self.outputs - whole)]


def blocking(isa: Isa, outputs: int, pixels: int) -> tuple[tuple[Block, ...], int]:
    """The blocks of a group's output channels, and the pixels that share a tile's registers."""
    lanes = lanes_for(isa, 32)
    # One lane: the shortest code is wanted, so the tile is one output of one pixel.
    registers, widest = (24, 4) if isa.vector_bits == 512 else (8, 2) if lanes > 1 else (1, 1)
    vectors = min(widest, -(-outputs // lanes))
    size = vectors * lanes
    blocks = [Block(0, outputs // size, size, lanes), Block(outputs - outputs % size, 1, outputs % size, lanes)]
    most = min(registers // vectors, pixels)
    exact = next(n for n in range(most, 0, -1) if pixels % n == 0)
    columns = exact if exact * 2 > most else most
    return tuple(b for b in blocks if b.count and b.outputs), columns


def build(site: Site, isa: Isa, geometry: Geometry, weights: NDArray[Any], label: str) -> Kernel:
    """The kernel of a contraction; ``weights`` [groups * outputs, taps] less their zero point, as int64."""
    plan = nest(geometry.pixels, [geometry.x, geometry.r, geometry.y])
    blocks, columns = blocking(isa, geometry.outputs, plan.dims[-1])
    residual = len(site.op.operands) > 4
    form = narrow(site, isa)
    panels = _panels(weights, geometry.groups, blocks)
    packed = np.concatenate([p for p, _ in panels]) if form is None else pack_panels(panels, form)
    arrays = [packed, *_vectors(site, weights)]
    blob, starts = pack(*arrays)
    inplace = (1,) if residual and overlays(site.view(4), site.output) else ()

    def body(pointers: Pointers) -> None:
        x, y = site.view(0), site.output
        constants = {
            name: buffer(pointers.constants, array.dtype.name, offset=start)
            for name, array, start in zip(("w", "start", "m", "c", "mr"), arrays, starts, strict=False)
        }
        tensors = {
            "x": buffer(pointers.inputs[0], x.tvm_dtype, x.alignment),
            "y": buffer(pointers.output, y.tvm_dtype, y.alignment),
        }
        if residual:
            r = site.view(4)
            tensors["r"] = buffer(pointers.inputs[1], r.tvm_dtype, r.alignment)
        unpack = None
        if form is not None:
            unpack = Unpacking(form, constants["w"], buffer(pointers.scratch, "int8"))
            constants["w"] = unpack.target
        emitter = _Emitter(site, geometry, plan, columns, constants | tensors, unpack, isa)
        with T.serial(0, geometry.groups) as group:
            first = group * sum(emitter.panel_bytes(block) * block.count for block in blocks)
            for block in blocks:
                emitter.block(group, block, first)
                first = first + emitter.panel_bytes(block) * block.count

    func = primitive(site.inputs, site.output, body, noalias=not inplace)
    scratch = 0 if form is None else max(block.outputs for block in blocks) * prod(geometry.taps)
    return Kernel(f"{label}.generic", func, blob, scratch, inplace)


def _panels(weights: NDArray[Any], groups: int, blocks: tuple[Block, ...]) -> list[tuple[NDArray[Any], int]]:
    """Weights in reading order, by block, in the narrowest type that holds them, and the outputs of each block."""
    dtype = np.int8 if weights.min() >= -128 and weights.max() <= 127 else np.int16
    panels: list[tuple[NDArray[Any], int]] = []
    for rows in np.split(weights.astype(dtype), groups):
        for block in blocks:
            part = rows[block.start : block.start + block.count * block.outputs]
            panels.extend((p.T.ravel(), block.outputs) for p in part.reshape(block.count, block.outputs, -1))
    return panels


def _vectors(site: Site, weights: NDArray[Any]) -> list[NDArray[Any]]:
    """One entry per output channel: the accumulators' start, m, c, and mr where there is a residual.

    Accumulators start at -zp * Σw, which is exact modulo 2**32: padding holds the zero point, and
    the true sum fits 32 bits.
    """
    start = -site.zero_point(0) * weights.sum(axis=1)
    slots = (2, 3, 5) if len(site.op.operands) > 4 else (2, 3)
    per_output = [np.broadcast_to(site.array(slot).reshape(-1), start.shape) for slot in slots]
    return [start.astype(np.int32), *per_output]


@dataclass(frozen=True, slots=True)
class _Panel:
    """One block's weights: where they, its output ``channel`` and its group's ``inputs`` begin."""

    block: Block
    weights: Any
    channel: Any
    inputs: Any


@dataclass(frozen=True, slots=True)
class _Emitter:
    site: Site
    geometry: Geometry
    plan: Nest
    columns: int
    buffers: dict[str, Any]
    unpack: Unpacking | None
    isa: Isa

    def panel_bytes(self, block: Block) -> int:
        """What the weights of one block of channels take (elements, where they are not packed)."""
        taps = prod(self.geometry.taps)
        return taps * block.outputs if self.unpack is None else self.unpack.form.size(taps, block.outputs)

    def block(self, group: Any, block: Block, first: Any) -> None:
        """All pixels of ``block.count`` blocks of channels, whose weights begin at ``first``."""

        def panel(number: Index) -> None:
            start = first + number[0] * self.panel_bytes(block)
            if self.unpack is not None:
                self.unpack(start, prod(self.geometry.taps), block.outputs)
                start = 0
            channel = group * self.geometry.outputs + (block.start + number[0] * block.outputs)
            self._pixels(_Panel(block, start, channel, group * self.geometry.group_step))

        loops((block.count,), panel)

    def _pixels(self, panel: _Panel) -> None:
        """Rows in full tiles, then one narrower tile."""
        total = self.plan.dims[-1]
        tiles, rest = divmod(total, self.columns)

        def row(outer: Index) -> None:
            loops((tiles,), lambda t: self._tile(panel, (*outer, t[0] * self.columns), self.columns))
            if rest:
                self._tile(panel, (*outer, tiles * self.columns), rest)

        loops(self.plan.dims[:-1], row)

    def _tile(self, panel: _Panel, index: Index, columns: int) -> None:
        g, b = self.geometry, self.buffers
        block, channel = panel.block, panel.channel
        acc = [local(block.outputs, "int32", self.isa) for _ in range(columns)]
        tile = [(p, first, width) for p in range(columns) for first, width in block.pieces]

        def start(p: int, i: Any) -> None:
            T.buffer_store(acc[p], b["start"][channel + i], [i])

        for p, first, width in tile:
            vector(width, partial(start, p), first)
        x = self.plan.at(0, self.site.view(0).offset + g.x_offset, index) + panel.inputs
        loops(g.taps, lambda tap: self._multiply(acc, block, x, panel.weights, tap))
        for p, first, width in tile:
            vector(width, partial(self._finish, acc[p], channel, index, p), first)

    def _multiply(self, acc: list[Any], block: Block, x: Any, panel: Any, tap: Index) -> None:
        """acc[p, n] += x[p] * w[n]; products of 8-bit codes fit 16 bits, which multiply faster."""
        g, b = self.geometry, self.buffers
        weight = panel + _linear(tap, g.taps) * block.outputs
        x = x + sum(t * s for t, s in zip(tap, g.tap_strides, strict=True))
        middle = "int16" if self.site.view(0).itemsize == 1 and b["w"].dtype == "int8" else "int32"
        step = self.plan.strides[0][-1]

        def product(p: int, i: Any) -> None:
            value = T.cast(b["x"][x + p * step], middle) * T.cast(b["w"][weight + i], middle)
            T.buffer_store(acc[p], acc[p][i] + T.cast(value, "int32"), [i])

        for first, width in block.pieces:
            for p in range(len(acc)):
                vector(width, partial(product, p), first)

    def _finish(self, acc: Any, channel: Any, index: Index, p: int, i: Any) -> None:
        g, b = self.geometry, self.buffers
        place = (*index[:-1], index[-1] + p)
        total = wide(acc[i]) * wide(b["m"][channel + i]) + b["c"][channel + i]
        if "r" in b:
            code = b["r"][self.plan.at(1, self.site.view(4).offset, place) + (channel + i) * g.r_channel]
            total = total + wide(code) * wide(b["mr"][channel + i])
        target = self.plan.at(2, self.site.output.offset, place) + (channel + i) * g.y_channel
        T.buffer_store(b["y"], Epilogue.of(self.site.op)(total), [target])


def _linear(index: Index, dims: tuple[int, ...]) -> Any:
    total: Any = 0
    for variable, dim in zip(index, dims, strict=True):
        total = total * dim + variable
    return total
