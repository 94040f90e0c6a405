"""How a contraction's operands lie: the reduction in chunks, and what all kernels of weights are given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    Chunk i of a pixel's reduction is ``CHUNK`` elements from ``offsets[i]`` on; ``weights``
    [columns, len(offsets) * CHUNK] int8 are zero where a chunk reaches over what it stands for.
    """

    rows: int
    plane: int
    width: int
    columns: int
    x: Walk
    y: Walk
    r: Walk
    offsets: tuple[int, ...]
    weights: NDArray[np.int8]

    @property
    def vector(self) -> int:
        """The bytes, at most ``CHUNK``, to which every chunk is aligned, inputs being bytes."""
        return gcd(CHUNK, *self.x, *self.offsets)


def operands(site: Site) -> Operands | None:
    """``site``'s, or None where weights exceed 8 bits, inputs are no bytes, or channels lie apart."""
    weights = centred_weights(site)
    residual = site.view(4) if len(site.op.operands) > 4 else site.output
    x, y = site.view(0), site.output
    if x.itemsize != 1 or weights.min() < -128 or weights.max() > 127:
        return None
    if site.op.kind == "idense":
        return _dense(x, y, residual, weights)
    if site.op.int_attr("groups") != 1 or not all(_dense_axis(v, 1) for v in (x, y, residual)):
        return None
    return _convolution(site, residual, weights)


def _dense_axis(view: View, axis: int) -> bool:
    return view.strides[axis] == 1 or view.shape[axis] == 1


def _dense(x: View, y: View, r: View, weights: NDArray[np.int64]) -> Operands | None:
    walks = [_rows(v) for v in (x, y, r)]
    if any(w is None for w in walks) or not all(_dense_axis(v, v.rank - 1) for v in (x, y, r)):
        return None
    x_walk, y_walk, r_walk = ((v.offset, 0, 0, w or 0) for v, w in zip((x, y, r), walks, strict=True))
    rows = x.size // x.shape[-1]
    offsets, packed = _chunked([(0, weights)])
    return Operands(rows, rows, rows, weights.shape[0], x_walk, y_walk, r_walk, offsets, packed)


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
    x, y = site.view(0), site.output
    (sh, sw), (dh, dw) = site.op.ints_attr("strides"), site.op.ints_attr("dilations")
    walks = (
        (x.offset + window_start(site), x.sample_stride, sh * x.row_stride, sw * x.pixel_stride),
        (y.offset, y.sample_stride, y.row_stride, y.pixel_stride),
        (r.offset, r.sample_stride, r.row_stride, r.pixel_stride),
    )
    columns, _, kh, kw = weights.shape
    row, pixel = dh * x.row_stride, dw * x.pixel_stride
    taps = [(i * row + j * pixel, weights[:, :, i, j]) for i in range(kh) for j in range(kw)]
    lines = [(i * row, _line(weights[:, :, i], pixel)) for i in range(kh)]
    # A line of pixels with few channels makes fuller chunks than each pixel alone.
    offsets, packed = min((_chunked(taps), _chunked(lines)), key=lambda chunked: len(chunked[0]))
    plane = y.height * y.width
    return Operands(y.samples * plane, plane, y.width, columns, *walks, offsets=offsets, weights=packed)


def _line(weights: NDArray[np.int64], pixel: int) -> NDArray[np.int64]:
    """[columns, channels, kernel width] as what one line of the window multiplies, pixels ``pixel`` bytes apart."""
    columns, channels, width = weights.shape
    line = np.zeros((columns, (width - 1) * pixel + channels), np.int64)
    for j in range(width):
        line[:, j * pixel : j * pixel + channels] += weights[:, :, j]
    return line


def _chunked(runs: list[tuple[int, NDArray[np.int64]]]) -> tuple[tuple[int, ...], NDArray[np.int8]]:
    """Runs of the input, each with its weights [columns, length], cut into chunks."""
    offsets = tuple(start + at for start, w in runs for at in range(0, w.shape[1], CHUNK))
    parts = [np.pad(w, ((0, 0), (0, -w.shape[1] % CHUNK))) for _, w in runs]
    return offsets, np.concatenate(parts, axis=1).astype(np.int8)


def vectors(site: Site, weights: NDArray[np.int8], size: int) -> Iterator[NDArray[np.generic]]:
    """One entry per output channel, zeros up to ``size``: the accumulators' start, m, c, and mr where there is one.

    Accumulators start at -zp * Σw, which is exact modulo 2**32: padding holds the zero point, and the true
    sum fits 32 bits.
    """
    start = (-site.zero_point(0) * weights.astype(np.int64).sum(axis=1)).astype(np.int32)
    slots = (2, 3, 5) if len(site.op.operands) > 4 else (2, 3)
    given = (np.broadcast_to(site.array(slot).reshape(-1), start.shape) for slot in slots)
    return (np.pad(v, (0, size - len(v))) for v in (start, *given))
