"""Convolutions and dense layers on integer tensor cores: operands packed for ``device/tensor.cuh``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.kernel import Site
from qcc_targets.cuda.bind import THREADS
from qcc_targets.cuda.kernel import CudaKernel
from qcc_targets.cuda.operands import CHUNK, Operands, operands
from qcc_targets.cuda.shape import DeviceCall, Form, calling, device_kernel, residual_types, weight_bits

_STEP: Final = 4 * CHUNK
"""Elements of the reduction between two barriers."""

_INPUTS: Final = ("u8", "i8", "u16", "i16")

_LEAST_CHANNELS: Final = 8
"""Input and output channels of a group for which a tile of its own is worth it."""

_PROCESSORS: Final = 128
"""Multiprocessors of a large GPU: tiles are chosen so that they have work."""


_LEAST_STEPS: Final = 8
"""Steps of a part of a reduction, at least: what shorter ones save, the second launch takes."""

_MOST_SPLITS: Final = 16


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


TILES: Final = (
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


def tensor(site: Site, *, halo: bool = False) -> CudaKernel | None:
    """The kernel of a convolution or dense layer, or None where its operands do not lie in aligned bytes."""
    if (found := operands(site)) is None or site.view(0).dtype not in _INPUTS or found.vector < 4:
        return None
    outputs = found.columns // found.groups
    if found.groups > 1 and min(outputs, site.array(1).shape[1]) < _LEAST_CHANNELS:
        return None
    # A result of 16-bit inputs takes two columns; groups share no tile.
    wide = found.itemsize == 2
    needed = outputs * found.itemsize
    tile = chosen(found.rows, needed * found.groups, site.output.itemsize)
    bits = 8 if wide else weight_bits(site)
    chunks = len(found.offsets)
    steps, tiles = -(-chunks * CHUNK // _STEP), -(-needed // tile.columns)
    columns = found.groups * tiles * tile.columns
    weights = np.zeros((found.groups, tiles * tile.columns, steps * _STEP), np.int8)
    rows = _by_bytes(found.weights) if wide else found.weights
    weights[:, :needed, : chunks * CHUNK] = rows.reshape(found.groups, needed, -1)
    blocks = tile.blocks(found.rows, tile.columns) * tiles * found.groups
    splits = split_count(blocks, steps) if found.groups == 1 else 1
    offsets, more = steps * _STEP // CHUNK, 1 << 15 if site.view(0).dtype == "i16" else 0
    packed_weights = packed(weights.reshape(columns, -1), bits)
    form = Form(columns, steps, offsets, packed_weights, CHUNK, splits, more, tiles, found.itemsize)
    numbers = (tile.rows, tile.columns, *tile.warps, tile.stages, found.vector, bits)
    name = f"tensor.{tile.rows}x{tile.columns}" + (f".{bits}bit" if bits < 8 else "")
    call = DeviceCall(name, "tensor_product", numbers, blocks, tile.threads)
    whole = device_kernel(site, found.in_bytes(), form, call, halo=halo)
    return whole if splits == 1 else _split(site, whole, call, form, found)


def split_count(blocks: int, steps: int) -> int:
    """The parts of a reduction of so many steps that occupy the processors which ``blocks`` blocks leave idle."""
    wanted = min(_PROCESSORS // blocks, steps // _LEAST_STEPS, _MOST_SPLITS)
    return 1 if wanted < 2 else -(-steps // -(-steps // wanted))


def _split(site: Site, whole: CudaKernel, call: DeviceCall, form: Form, o: Operands) -> CudaKernel:
    """``whole`` as two kernels: partial sums, and what becomes of them."""
    constants, results = whole.kernel.constants, form.results
    size = 4 * form.splits * o.rows * results
    symbol = f"qcc::tensor_partial<{', '.join(map(str, call.numbers))}, {site.view(0).tvm_dtype}_t>"
    name, blocks = f"{call.name}.split", call.blocks * form.splits
    first = calling(site, name, symbol, "xcs", constants, blocks, call.threads)
    symbol = f"qcc::tensor_sum<{', '.join(residual_types(site))}>"
    blocks = -(-o.rows * results // (4 * THREADS))
    second = calling(site, f"{call.name}.sum", symbol, "rcys", constants, blocks, THREADS)
    kernel = replace(first.kernel, scratch=size)
    return replace(first, kernel=kernel, fills_halo=whole.fills_halo, then=second)


def chosen(rows: int, columns: int, itemsize: int) -> Tile:
    """The tile that computes so many results, of ``itemsize`` bytes, the soonest."""
    fitting = [t for t in TILES if itemsize < 4 or t.rows * t.columns <= _WIDEST * _WIDEST]
    return min(fitting, key=lambda t: t.cost(rows, columns))


def _by_bytes(weights: NDArray[np.int8]) -> NDArray[np.int8]:
    """Weights of 16-bit inputs as those of their bytes: the low ones in even rows, the high ones in odd rows."""
    columns, depth = weights.shape
    both = np.zeros((columns, 2, depth, 2), np.int8)
    both[:, 0, :, 0] = both[:, 1, :, 1] = weights
    return both.reshape(2 * columns, 2 * depth)


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
