"""How a contraction's operands lie: the reduction in chunks, and what all kernels of weights are given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.generic.conv import centred_weights, window_start
from qcc_targets.cpu.kernel import Site, View

CHUNK = 16
"""Bytes of the input that are loaded at once."""

Walk = tuple[int, int, int, int]
"""Where a tensor begins, and its strides over samples, rows and columns of the output, in elements."""


def padded_pixel(size: int) -> int:
    """The bytes that a pixel of ``size`` bytes takes, so that chunks of it are aligned."""
    return -(-size // CHUNK) * CHUNK if size > CHUNK // 2 else max(4, 1 << (size - 1).bit_length())


@dataclass(frozen=True, slots=True)
class Operands:
    """A convolution or dense layer as a matrix product.

    ``rows`` output pixels in planes of ``plane`` with ``width`` pixels a line, ``columns`` output channels.
    Each of ``groups`` ranges of columns has a range of ``group_step`` input channels.
    ``depth`` is the length of a dense layer's reduction, which is one run. Chunk i of a reduction is ``CHUNK``
    bytes from element ``offsets[i]`` on; ``weights`` [columns, elements of all chunks] int8 are zero where a chunk
    reaches over what it stands for.
    """

    rows: int
    plane: int
    width: int
    columns: int
    x: Walk
    y: Walk
    r: Walk
    depth: int
    itemsize: int
    offsets: tuple[int, ...]
    weights: NDArray[np.int8]
    groups: int = 1
    group_step: int = 0

    def in_bytes(self) -> Operands:
        """The same with distances in the input counted in bytes."""
        size, (start, sample, line, column) = self.itemsize, self.x
        x = (start * size, sample * size, line * size, column * size)
        offsets = tuple(n * size for n in self.offsets)
        return replace(self, x=x, offsets=offsets, group_step=self.group_step * size)

    @property
    def vector(self) -> int:
        """The bytes, at most ``CHUNK``, to which every chunk is aligned."""
        return gcd(CHUNK, *(n * self.itemsize for n in (*self.x, *self.offsets, self.group_step)))


def operands(site: Site) -> Operands | None:
    """Those of a convolution or dense layer; None where weights exceed 8 bits or channels lie apart."""
    if site.op.kind not in ("iconv2d", "idense"):
        return None
    weights = centred_weights(site)
    residual = site.view(4) if len(site.op.operands) > 4 else site.output
    x, y = site.view(0), site.output
    if weights.min() < -128 or weights.max() > 127:
        return None
    if site.op.kind == "idense":
        return _dense(x, y, residual, weights)
    if not all(_dense_axis(v, 1) for v in (x, y, residual)):
        return None
    groups = site.op.int_attr("groups")
    found = _convolution(site, residual, weights)
    return found if groups == 1 else replace(found, groups=groups, group_step=weights.shape[1])


def depthwise_operands(site: Site) -> Operands | None:
    """The same of a convolution with one input channel per output channel: each position is a chunk of its own.

    ``weights`` is [channels, positions].
    """
    if site.op.kind != "iconv2d":
        return None
    weights, groups = centred_weights(site), site.op.int_attr("groups")
    if weights.shape[1] != 1 or weights.shape[0] != groups or weights.min() < -128 or weights.max() > 127:
        return None
    residual = site.view(4) if len(site.op.operands) > 4 else site.output
    if not all(_dense_axis(v, 1) for v in (site.view(0), site.output, residual)):
        return None
    taps = tuple(at for at, _ in _taps(site, weights))
    return _convolved(site, residual, taps, weights.reshape(groups, -1).astype(np.int8))


def _dense_axis(view: View, axis: int) -> bool:
    return view.strides[axis] == 1 or view.shape[axis] == 1


def _dense(x: View, y: View, r: View, weights: NDArray[np.int64]) -> Operands | None:
    walks = [_rows(v) for v in (x, y, r)]
    if any(w is None for w in walks) or not all(_dense_axis(v, v.rank - 1) for v in (x, y, r)):
        return None
    x_walk, y_walk, r_walk = ((v.offset, 0, 0, w or 0) for v, w in zip((x, y, r), walks, strict=True))
    rows = x.size // x.shape[-1]
    offsets, packed = _chunked([(0, weights)], x.itemsize)
    columns, depth = weights.shape
    return Operands(rows, rows, rows, columns, x_walk, y_walk, r_walk, depth, x.itemsize, offsets, packed)


def _rows(view: View) -> int | None:
    """The one stride that walks all axes but the last, or None."""
    step, size = None, 1
    for dim, stride in zip(reversed(view.shape[:-1]), reversed(view.strides[:-1]), strict=True):
        if dim == 1:
            continue
        if step is None:
            step = stride
        elif stride != step * size:
            return None
        size *= dim
    return step or 0


def _convolution(site: Site, r: View, weights: NDArray[np.int64]) -> Operands:
    x = site.view(0)
    dh, dw = site.op.ints_attr("dilations")
    lines = [(i * dh * x.row_stride, _line(weights[:, :, i], dw * x.pixel_stride)) for i in range(weights.shape[2])]
    # A line of pixels with few channels makes fuller chunks than each pixel alone.
    choices = [_chunked(runs, x.itemsize) for runs in (_taps(site, weights), lines)]
    chunked = min(choices, key=lambda both: len(both[0]))
    return _convolved(site, r, *chunked)


def _taps(site: Site, weights: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """Where each position of the window lies, and its weights [columns, channels]."""
    (dh, dw), (kh, kw), x = site.op.ints_attr("dilations"), weights.shape[2:], site.view(0)
    row, pixel = dh * x.row_stride, dw * x.pixel_stride
    return [(i * row + j * pixel, weights[:, :, i, j]) for i in range(kh) for j in range(kw)]


def _convolved(site: Site, r: View, offsets: tuple[int, ...], weights: NDArray[np.int8]) -> Operands:
    x, y = site.view(0), site.output
    sh, sw = site.op.ints_attr("strides")
    walks = (
        (x.offset + window_start(site), x.sample_stride, sh * x.row_stride, sw * x.pixel_stride),
        (y.offset, y.sample_stride, y.row_stride, y.pixel_stride),
        (r.offset, r.sample_stride, r.row_stride, r.pixel_stride),
    )
    plane = y.height * y.width
    return Operands(
        y.samples * plane, plane, y.width, weights.shape[0], *walks, 0, x.itemsize, offsets=offsets, weights=weights
    )


def _line(weights: NDArray[np.int64], pixel: int) -> NDArray[np.int64]:
    """[columns, channels, kernel width] as what one line of the window multiplies, pixels ``pixel`` bytes apart."""
    columns, channels, width = weights.shape
    line = np.zeros((columns, (width - 1) * pixel + channels), np.int64)
    for j in range(width):
        line[:, j * pixel : j * pixel + channels] += weights[:, :, j]
    return line


def _chunked(runs: list[tuple[int, NDArray[np.int64]]], itemsize: int) -> tuple[tuple[int, ...], NDArray[np.int8]]:
    """Runs of the input, each with its weights [columns, length], cut into chunks."""
    size = CHUNK // itemsize
    offsets = tuple(start + at for start, w in runs for at in range(0, w.shape[1], size))
    parts = [np.pad(w, ((0, 0), (0, -w.shape[1] % size))) for _, w in runs]
    return offsets, np.concatenate(parts, axis=1).astype(np.int8)
