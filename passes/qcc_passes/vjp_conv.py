"""Vector-Jacobian products of the windowed operations: convolution and pooling.

Every window is walked tap by tap: for kernel offset (i, j) the strided view of the padded input
that meets it has the result's height and width, so each tap is one GEMM or one elementwise step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Op

Array = NDArray[Any]


def conv2d(o: Op, x: Array, w: Array, grad: Array) -> tuple[Array, Array, Array]:
    """Cotangents of x [N,C,H,W], w [O,C/g,kh,kw] and the bias [O], from that of the result."""
    return conv2d_input(o, x, w, grad), conv2d_weights(o, x, w.shape, grad), grad.sum(axis=(0, 2, 3))


def conv2d_input(o: Op, x: Array, w: Array, grad: Array) -> Array:
    """The cotangent of x [N,C,H,W]."""
    padded, crop = _pad(o, np.zeros(x.shape, grad.dtype), 0.0)
    if _depthwise(o, x, w.shape):
        for (i, j), tap in _taps(o, w.shape[2:], grad.shape[2:]):
            padded[tap] += w[:, 0, i, j][:, None, None] * grad
        return padded[crop]
    for ins, outs in _groups(o, x, w.shape):
        columns = _columns(grad[:, outs])
        size = (x.shape[0], *grad.shape[2:])
        for (i, j), tap in _taps(o, w.shape[2:], grad.shape[2:]):
            back = (w[outs, :, i, j].T @ columns).reshape(-1, *size)
            padded[:, ins][tap] += back.transpose(1, 0, 2, 3)
    return padded[crop]


def conv2d_weights(o: Op, x: Array, shape: tuple[int, ...], grad: Array) -> Array:
    """The gradient of w [O,C/g,kh,kw], of ``shape``, summed over the samples."""
    padded, _ = _pad(o, x, 0.0)
    dw = np.zeros(shape, np.result_type(x, grad))
    if _depthwise(o, x, shape):
        for (i, j), tap in _taps(o, shape[2:], grad.shape[2:]):
            dw[:, 0, i, j] = np.einsum("nchw,nchw->c", padded[tap], grad)
        return dw
    for ins, outs in _groups(o, x, shape):
        columns = _columns(grad[:, outs])
        for (i, j), tap in _taps(o, shape[2:], grad.shape[2:]):
            dw[outs, :, i, j] = columns @ _columns(padded[:, ins][tap]).T
    return dw


def _depthwise(o: Op, x: Array, shape: tuple[int, ...]) -> bool:
    return shape[1] == 1 and o.int_attr("groups") == x.shape[1] == shape[0]


def _groups(o: Op, x: Array, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """The input and the output channels of each group."""
    groups = o.int_attr("groups")
    inner, outer = x.shape[1] // groups, shape[0] // groups
    for g in range(groups):
        yield slice(g * inner, (g + 1) * inner), slice(g * outer, (g + 1) * outer)


def _columns(x: Array) -> Array:
    """[N,C,H,W] as [C, N*H*W]."""
    columns: Array = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    return columns


def max_pool2d(o: Op, x: Array, y: Array, grad: Array) -> Array:
    """The cotangent goes to the first element of each window that attains the maximum."""
    padded, crop = _pad(o, x, -np.inf)
    dx = np.zeros_like(padded)
    free = np.ones(y.shape, bool)
    for _, tap in _taps(o, o.ints_attr("kernel"), y.shape[2:]):
        hit = free & (padded[tap] == y)
        dx[tap] += np.where(hit, grad, 0)
        free &= ~hit
    return dx[crop]


def avg_pool2d(o: Op, x: Array, grad: Array) -> Array:
    """The cotangent spreads evenly over the elements that each window counts."""
    ones = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if o.bool_attr("count_include_pad"):
        top, left, bottom, right = o.ints_attr("pads")
        below, beyond = o.ints_attr("ceil_pads")
        counted = np.pad(ones, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=1)
        counted = np.pad(counted, ((0, 0), (0, 0), (0, below), (0, beyond)))
    else:
        counted, _ = _pad(o, ones, 0.0)
    taps = list(_taps(o, o.ints_attr("kernel"), grad.shape[2:]))
    count = sum(counted[tap] for _, tap in taps)
    padded, crop = _pad(o, x, 0.0)
    dx = np.zeros_like(padded)
    for _, tap in taps:
        dx[tap] += grad / count
    return dx[crop]


def _pad(o: Op, x: Array, value: float) -> tuple[Array, tuple[slice, ...]]:
    """The padded input, and the slices that cut the input out of it again."""
    top, left, bottom, right = o.ints_attr("pads")
    if "ceil_pads" in o.attrs:
        below, beyond = o.ints_attr("ceil_pads")
        bottom, right = bottom + below, right + beyond
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=value)
    crop = (slice(None), slice(None), slice(top, top + x.shape[2]), slice(left, left + x.shape[3]))
    return padded, crop


def _taps(o: Op, kernel: tuple[int, ...], out: tuple[int, ...]) -> Iterator[tuple[tuple[int, int], tuple[slice, ...]]]:
    """Each kernel offset with the strided view of the padded input that meets it."""
    (sh, sw), (dh, dw) = o.ints_attr("strides"), o.ints_attr("dilations")
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            rows = slice(i * dh, i * dh + (out[0] - 1) * sh + 1, sh)
            cols = slice(j * dw, j * dw + (out[1] - 1) * sw + 1, sw)
            yield (i, j), (slice(None), slice(None), rows, cols)
