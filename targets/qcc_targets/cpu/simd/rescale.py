"""Sums of one or two tensors on other grids, in vectors: rescaled copies, and additions that no convolution took in.

Codes take the place of accumulators, and those of the second tensor that of a residual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.types import DTYPES
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, pack, primitive
from qcc_targets.cpu.simd import emit, positions
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue_neon import epilogue
from qcc_targets.cpu.simd.flat import FlatBlock, Place
from qcc_targets.cpu.simd.requant import Requant, scaled

BLOCK_VECTORS: Final = 16
"""Vectors of codes that a block of positions aims at."""

LEAST_CHANNELS: Final = 8
"""With fewer, vectors would be written in many pieces."""


def build(site: Site, isa: Isa) -> Kernel | None:
    """The kernel of an ``ilinear`` of one or two tensors like its result, or None where it is another."""
    if not {"avx2", "neon"} & isa.features or not _covered(site):
        return None
    constants = [_per_channel(site.array(slot), site.output) for slot, v in enumerate(site.views) if v is None]
    vectors = [c for c in constants if c is not None]
    if len(vectors) < len(constants):
        return None
    requant = _requant(site, isa, vectors)
    return None if requant is None else _Template(site, isa, requant).build()


def _covered(site: Site) -> bool:
    """Unsigned codes in this call's own memory, channels side by side, no broadcasting."""
    inputs, y = site.inputs, site.output
    if len(inputs) not in (1, 2) or len(inputs) != len(site.views) // 2 or y.rank not in (2, 4):
        return False
    if any(v.dtype not in ("u8", "u16") or v.external or v.shape != y.shape for v in inputs):
        return False
    return y.shape[1] >= LEAST_CHANNELS and all(v.strides[1] == 1 for v in (*inputs, y))


def _per_channel(array: NDArray[Any], y: View) -> NDArray[Any] | None:
    """One exact integer per channel, or None where the constant varies along other axes too."""
    shape = (1,) * (y.rank - array.ndim) + array.shape
    if any(n != 1 for axis, n in enumerate(shape) if axis != 1):
        return None
    return np.broadcast_to(array.reshape(-1), y.shape[1:2]).astype(object)


def _requant(site: Site, isa: Isa, constants: list[NDArray[Any]]) -> Requant | None:
    c, m, *mr = constants
    first, *_ = most = [int(np.iinfo(DTYPES[v.dtype]).max) for v in site.inputs]
    floor, ceiling = np.zeros(len(c), object), np.full(len(c), first, object)
    bits = 52 - most[-1].bit_length() if "ifma" in isa else 32
    return scaled(site, m, c, mr[0] if mr else None, floor, ceiling, most[-1], bits)


@dataclass(frozen=True, slots=True)
class _Codes(FlatBlock):
    """A block whose accumulators are codes, and lie in the order of the tensor."""

    @property
    def packed(self) -> bool:
        return False

    def codes(self, source: tuple[Memory, Place], vector: int) -> tuple[Expr, Expr]:
        """The even and odd codes of vector number ``vector``: a residual is read in the same way."""
        return self._residual(source, vector)


@dataclass(frozen=True, slots=True)
class _Template:
    site: Site
    isa: Isa
    requant: Requant

    @property
    def tensors(self) -> tuple[View, ...]:
        """Input, output, and the second input if there is one: as a contraction orders them."""
        first, *second = self.site.inputs
        return (first, self.site.output, *second)

    @property
    def tiles(self) -> positions.Tiles:
        shape, channels = self.site.output.shape, self.site.output.shape[1]
        walks = [(v.strides[0], *v.strides[2:]) for v in self.tensors]
        most = max(1, BLOCK_VECTORS * self.isa.vector_bits // 32 // channels)
        return positions.tiles((shape[0], *shape[2:]), walks, most)

    def build(self) -> Kernel:
        tiles, channels = self.tiles, self.site.output.shape[1]
        block = _Codes(epilogue(self.isa, self.requant), tiles.rows, channels, channels)
        blob, (start,) = pack(block.constants(np.arange(channels)[None]))

        def body(pointers: Pointers) -> None:
            first, *second = pointers.inputs
            addresses = (first, pointers.output, *second)
            memories = [emit.memory(p, v.tvm_dtype, v.alignment) for p, v in zip(addresses, self.tensors, strict=True)]
            constants = emit.memory(pointers.constants, "int64", offset=start)
            with emit.loop(tiles.count) as tile:
                self._tile(block, memories, constants, tile)

        func = primitive(self.site.inputs, self.site.output, body, plain=True)
        return Kernel(f"linear.{self.isa.name}[{tiles.rows} by {channels}]", func, blob)

    def _tile(self, block: _Codes, memories: list[Memory], constants: Memory, tile: Expr) -> None:
        tiles = self.tiles

        def place(tensor: int) -> Place:
            base = emit.bind(tiles.base(tensor, tile) + self.tensors[tensor].offset)
            return lambda position: (0, base, tiles.offset(tensor, position))

        source, target, *second = [(memory, place(tensor)) for tensor, memory in enumerate(memories)]
        loaded = block.load_constants(constants, 0)
        for group in range(block.groups):
            block.group(group, lambda v: block.codes(source, v), loaded, target, *second)
