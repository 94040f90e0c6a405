"""What convolutions and dense layers have in common: positions, runs of input, weights, requantization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Site, View
from qcc_targets.cpu.simd.dot_neon import offset
from qcc_targets.cpu.simd.lowbit import LowBit, low_bit
from qcc_targets.cpu.simd.requant import Requant, fold
from qcc_targets.cpu.simd.split import PLANES, Split

_INPUTS: Final = frozenset({"u8", "i8", "u16", "i16"})
_OUTPUTS: Final = frozenset({"u8", "i8", "u16", "i16", "i32"})


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive bytes of input that every position multiplies, ``offset`` bytes after its first.

    ``weights`` [O, bytes] int64.
    """

    offset: int
    weights: NDArray[np.int64]

    @property
    def length(self) -> int:
        return int(self.weights.shape[1])


@dataclass(frozen=True, slots=True)
class Contraction:
    """y[p, n] = requantize(sum over runs of x[p, …] * w[n, …]) for the output channels of one group.

    ``shape`` and the strides walk the positions; tensors are, in order, input, output and, where
    there is one, residual. ``starts`` are the elements of each tensor at the first position and
    channel, ``channels`` where this group's output channels begin.
    """

    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]
    runs: tuple[Run, ...]
    requant: Requant
    signed: bool
    """Whether the input's codes are i8 rather than u8."""
    packing: LowBit | None
    """How the weights are stored where they have fewer than 8 bits."""
    split: Split | None = None
    """The planes of bytes that the input's 16-bit codes are read as; distances in the input are then theirs."""
    begin: NDArray[np.int32] | None = None
    """With ``split``, what to add to each channel's sum over raw codes to centre it."""

    @property
    def outputs(self) -> int:
        return self.requant.channels

    @property
    def depth(self) -> int:
        """Input bytes per position."""
        return sum(r.length for r in self.runs)

    @property
    def residual(self) -> bool:
        return self.requant.mr is not None

    @property
    def planes(self) -> int:
        """Bytes per code of the input."""
        return PLANES if self.split else 1


def contraction(site: Site, isa: Isa) -> Contraction | None:
    """The contraction that ``site`` is, or None where bytes, strides or bounds do not fit the templates."""
    tensors = [site.view(0), site.output, *([site.view(4)] if len(site.op.operands) > 4 else [])]
    weights = site.array(1).astype(np.int64) - site.zero_point(1)
    if not _bytes_fit(tensors, weights):
        return None
    slot = 4 if len(tensors) > 2 else None
    split = Split(tensors[0]) if tensors[0].dtype in ("u16", "i16") else None
    off = offset(isa, tensors[0].dtype)
    requant = fold(site, weights, residual=slot, wide_residual="ifma" in isa, centred=split is not None, offset=off)
    if requant is None:
        return None
    geometry = _conv if site.op.kind == "iconv2d" else _dense
    work = geometry(site, tensors, weights, requant)
    if work is None or split is None:
        return work
    return _on_planes(work, split, weights, site.zero_point(0) - off * split.unit)


def _on_planes(work: Contraction, split: Split, weights: NDArray[np.int64], zero_point: int) -> Contraction:
    """``work`` over the planes of its input."""
    sums = weights.reshape(len(weights), -1).sum(axis=1)
    begin = (-(zero_point + split.raised) * sums).astype(np.int32)
    starts = (work.starts[0] - split.first, *work.starts[1:])
    return replace(work, starts=starts, signed=False, split=split, begin=begin)


def _bytes_fit(tensors: Sequence[View], weights: NDArray[np.int64]) -> bool:
    x, y, *r = tensors
    if x.dtype not in _INPUTS or y.dtype not in _OUTPUTS or any(v.dtype not in ("u8", "u16") for v in r):
        return False
    axis = 1 if x.rank == 4 and weights.ndim == 4 else x.rank - 1
    if any(v.strides[axis] != 1 and v.shape[axis] != 1 for v in tensors):
        return False
    return bool(weights.min() >= -128 and weights.max() <= 127)


def _conv(site: Site, tensors: Sequence[View], weights: NDArray[np.int64], requant: Requant) -> Contraction | None:
    if site.op.int_attr("groups") != 1:
        return None
    x, y = tensors[:2]
    (sh, sw), (dh, dw) = site.op.ints_attr("strides"), site.op.ints_attr("dilations")
    top, left, _, _ = site.op.ints_attr("pads")
    steps = [(v.sample_stride, v.row_stride, v.pixel_stride) for v in tensors]
    steps[0] = (x.sample_stride, sh * x.row_stride, sw * x.pixel_stride)
    corner = x.offset - top * x.row_stride - left * x.pixel_stride
    shape = (y.samples, y.height, y.width)
    starts = (corner, *(v.offset for v in tensors[1:]))
    runs = _window_runs(weights.transpose(0, 2, 3, 1), dh * x.row_stride, dw * x.pixel_stride)
    return Contraction(shape, tuple(steps), starts, runs, requant, x.dtype == "i8", low_bit(site))


def _window_runs(weights: NDArray[np.int64], row: int, pixel: int) -> tuple[Run, ...]:
    """The runs of a window; ``weights`` [O, kh, kw, C], ``row`` and ``pixel`` bytes between taps."""
    outputs, rows, columns, channels = weights.shape
    if pixel == channels:
        return tuple(Run(i * row, weights[:, i].reshape(outputs, -1)) for i in range(rows))
    return tuple(Run(i * row + j * pixel, weights[:, i, j]) for i in range(rows) for j in range(columns))


def _dense(site: Site, tensors: Sequence[View], weights: NDArray[np.int64], requant: Requant) -> Contraction:
    x, y = tensors[:2]
    steps = tuple(v.strides[:-1] for v in tensors)
    starts = tuple(v.offset for v in tensors)
    return Contraction(y.shape[:-1], steps, starts, (Run(0, weights),), requant, x.dtype == "i8", low_bit(site))


def channel_blocks(outputs: int, size: int) -> NDArray[np.int64]:
    """The channels of blocks of ``size``, [blocks, size]; the last block overlaps where it must.

    A block larger than all channels ends in -1, which stands for none.
    """
    count = -(-outputs // size)
    starts = np.minimum(np.arange(count) * size, max(outputs - size, 0))
    channels = np.asarray(starts[:, None] + np.arange(size))
    return np.where(channels < outputs, channels, -1)


def pack_weights(runs: Sequence[Run], chunk: int, columns: NDArray[np.int64]) -> NDArray[np.int8]:
    """Weights as [blocks, steps, groups, chunk/4, lanes, 4]: what VNNI and AMX read, block by block.

    Each run is cut into steps of ``chunk`` bytes, the last padded with zeros. ``columns``
    [blocks, groups, lanes] says which output channel each lane holds; -1: none.
    """
    steps: list[NDArray[Any]] = []
    for run in runs:
        padded = np.pad(run.weights, ((0, 1), (0, -run.length % chunk)))  # row -1: the channel that is none
        padded[-1] = 0
        blocks, groups, lanes = columns.shape
        picked = padded[columns].reshape(blocks, groups, lanes, -1, chunk // 4, 4)
        steps.append(picked.transpose(0, 3, 1, 4, 2, 5))
    return np.ascontiguousarray(np.concatenate(steps, axis=1).astype(np.int8))


def step_offsets(runs: Sequence[Run], chunk: int) -> list[int]:
    """The input offset of every step that ``pack_weights`` makes."""
    return [run.offset + at for run in runs for at in range(0, run.length, chunk)]


def even_chunk(runs: Sequence[Run], most: int) -> int:
    """The multiple of 4, at most ``most``, that cuts the longest run into the fewest equal steps."""
    longest = max(r.length for r in runs)
    count = -(-longest // most)
    return min(most, -(-longest // (4 * count)) * 4)
