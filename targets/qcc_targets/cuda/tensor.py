"""Convolutions and dense layers on integer tensor cores: operands packed for ``device/tensor.cuh``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.packing import code_bits
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, pack, primitive
from qcc_targets.cuda.kernel import CudaKernel
from qcc_targets.cuda.operands import CHUNK, Operands, Walk, operands, vectors

_STEP: Final = 4 * CHUNK
"""Elements of the reduction between two barriers."""

_PROCESSORS: Final = 128
"""Multiprocessors of a large GPU: tiles are chosen so that they have work."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows and columns of a block's results, its warps, its ring of buffers, and its speed with all processors busy."""

    rows: int
    columns: int
    warps: tuple[int, int]
    stages: int
    speed: float

    @property
    def threads(self) -> int:
        return 32 * self.warps[0] * self.warps[1]

    def blocks(self, rows: int, columns: int) -> int:
        return -(-rows // self.rows) * -(-columns // self.columns)

    def cost(self, rows: int, columns: int) -> float:
        """What the busiest processor does, in results of the fastest tile."""
        return -(-self.blocks(rows, columns) // _PROCESSORS) * self.rows * self.columns / self.speed


_TILES: Final = (
    Tile(128, 128, (2, 4), 3, 1.0),
    Tile(128, 64, (4, 2), 3, 0.8),
    Tile(64, 64, (2, 2), 4, 0.65),
    Tile(128, 32, (4, 1), 4, 0.55),
    Tile(64, 32, (4, 1), 4, 0.45),
    Tile(32, 64, (1, 4), 4, 0.45),
    Tile(32, 32, (2, 2), 4, 0.35),
)
"""Speeds are ratios of products per byte of shared memory traffic, not measurements."""

_WIDEST: Final = 64
"""Columns of a tile whose results take four bytes, which shared memory must hold."""


def tensor(site: Site) -> CudaKernel | None:
    """The kernel of a convolution or dense layer, or None where its operands do not lie in aligned bytes."""
    if site.op.kind not in ("iconv2d", "idense") or (found := operands(site)) is None or found.vector < 4:
        return None
    fitting = [t for t in _TILES if site.output.itemsize < 4 or t.rows * t.columns <= _WIDEST * _WIDEST]
    tile = min(fitting, key=lambda t: t.cost(found.rows, found.columns))
    bits = _bits(site)
    residual = site.view(4) if len(site.op.operands) > 4 else None
    blob = _constants(site, found, tile, bits, residual)
    symbol = _symbol(site, found, tile, bits, residual)

    def body(pointers: Pointers) -> None:
        x, *r = pointers.inputs
        with T.launch_thread("threadIdx.x", tile.threads):
            other = r or [x]
            T.evaluate(tirx.call_extern("void", symbol, x, *other, pointers.constants, pointers.output))

    name = f"tensor.{tile.rows}x{tile.columns}" + (f".{bits}bit" if bits < 8 else "")
    kernel = Kernel(name, primitive(site.inputs, site.output, body, noalias=False), blob)
    return CudaKernel(kernel, (tile.blocks(found.rows, found.columns), 1, 1), (tile.threads, 1, 1))


def _bits(site: Site) -> int:
    """The bits that weights are stored in: 2, 4 or 8."""
    if site.zero_point(1):
        return 8
    bits = code_bits(site.op.operands[1], site.array(1)) if site.op.operands[1].type.dtype == "i8" else None
    return 8 if bits is None or bits > 4 else 4 if bits > 2 else 2


def _symbol(site: Site, o: Operands, tile: Tile, bits: int, residual: View | None) -> str:
    """The instance of the device function template."""
    numbers = (tile.rows, tile.columns, *tile.warps, tile.stages, o.vector, bits)
    views = (site.view(0), residual or site.view(0), site.output)
    flags = "true" if residual else "false"
    return (
        f"qcc::tensor_product<{', '.join(map(str, numbers))}, {flags}, {', '.join(f'{v.tvm_dtype}_t' for v in views)}>"
    )


def _constants(site: Site, o: Operands, tile: Tile, bits: int, residual: View | None) -> bytes:
    """``TensorShape`` and what it points to."""
    columns = -(-o.columns // tile.columns) * tile.columns
    chunks = len(o.offsets)
    steps = -(-chunks * CHUNK // _STEP)
    offsets = np.array(o.offsets + (0,) * (steps * _STEP // CHUNK - chunks), np.int32)
    weights = np.zeros((columns, steps * _STEP), np.int8)
    weights[: o.columns, : chunks * CHUNK] = o.weights
    arrays: Sequence[NDArray[np.generic]] = [offsets, *vectors(site, o.weights, columns), packed(weights, bits)]
    numbers = [o.rows, o.columns, columns, steps, o.plane, o.width, *o.x, *o.y, *o.r]
    numbers += [site.op.int_attr(k) for k in ("shift", "qmin", "qmax")]
    numbers += [_whole_chunks(site.output, o.y), residual is not None and _whole_chunks(residual, o.r)]
    shape = np.zeros(len(numbers) + 6, np.int32)
    _, (_, first, *rest) = pack(shape, *arrays)
    *given, weights_at = rest
    start, scale, bias, r_scale = (*given, 0)[:4]
    shape[:] = [*numbers, first, start, scale, bias, r_scale, weights_at]
    return pack(shape, *arrays)[0]


def _whole_chunks(view: View, walk: Walk) -> bool:
    return not view.external and all(n * view.itemsize % CHUNK == 0 for n in walk)


def packed(weights: NDArray[np.int8], bits: int) -> NDArray[np.generic]:
    """Weights [columns, steps * 64] in the order in which ``tensor.cuh`` reads them.

    8 bits: [step][column][64]. 4 bits: [half step][column][4 lanes] words, byte i of lane t holding codes 4t + i
    (low nibble) and 16 + 4t + i of the half's 32. 2 bits: [step][column][4 lanes] words, the same for both halves,
    the first half in the low nibbles.
    """
    columns = weights.shape[0]
    steps = weights.reshape(columns, -1, _STEP).transpose(1, 0, 2)
    if bits == 8:
        return np.ascontiguousarray(steps)
    halves = (steps & ((1 << bits) - 1)).astype(np.uint8).reshape(len(steps), columns, 2, 2, CHUNK)
    both = halves[..., 0, :] | halves[..., 1, :] << bits  # [step, column, half, 4 lanes * 4 bytes]
    if bits == 4:
        return np.ascontiguousarray(both.transpose(0, 2, 1, 3))
    return np.ascontiguousarray(both[:, :, 0] | both[:, :, 1] << 4)
