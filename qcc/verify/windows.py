"""Sliding windows over [N, C, H, W]: shifted views, patch columns, and convolution as matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir import shapes
from qcc.ir.graph import Op

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Window:
    """Geometry of a convolution or pooling; ``pads`` are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]

    @classmethod
    def of(cls, o: Op) -> Window:
        """The window of a pooling operation, or of a convolution with weights [O, C/g, kh, kw]."""
        kernel = o.ints_attr("kernel") if "kernel" in o.attrs else o.operands[1].type.shape[2:]
        top, left, bottom, right = o.ints_attr("pads")
        if "ceil_pads" in o.attrs:
            below, beyond = o.ints_attr("ceil_pads")
            bottom, right = bottom + below, right + beyond
        (kh, kw), (sh, sw), (dh, dw) = kernel, o.ints_attr("strides"), o.ints_attr("dilations")
        return cls((kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw))

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Window positions over a map of ``height`` times ``width`` before padding."""
        top, left, bottom, right = self.pads
        rows = shapes.window(height, self.kernel[0], self.strides[0], top + bottom, self.dilations[0])
        return rows, shapes.window(width, self.kernel[1], self.strides[1], left + right, self.dilations[1])

    def padded(self, x: Array, fill: float) -> Array:
        """``x`` [N, C, H, W] with its border filled by ``fill``."""
        top, left, bottom, right = self.pads
        if not any(self.pads):
            return x
        n, c, h, w = x.shape
        out = np.full((n, c, h + top + bottom, w + left + right), fill, x.dtype)
        out[:, :, top : top + h, left : left + w] = x
        return out

    def taps(self, x: Array, fill: float = 0) -> Iterator[tuple[int, int, Array]]:
        """For each kernel position (i, j), the view [N, C, rows, cols] of what it reads."""
        rows, cols = self.output(x.shape[2], x.shape[3])
        x = self.padded(x, fill)
        (sh, sw), (dh, dw) = self.strides, self.dilations
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                top, left = i * dh, j * dw
                yield i, j, x[:, :, top : top + (rows - 1) * sh + 1 : sh, left : left + (cols - 1) * sw + 1 : sw]

    def columns(self, x: Array) -> Array:
        """Patches [N, C, kh*kw, rows*cols] (im2col), zero where the window reaches into the padding."""
        n, c, h, w = x.shape
        rows, cols = self.output(h, w)
        if self.kernel == self.strides == (1, 1) and not any(self.pads):
            return x.reshape(n, c, 1, h * w)
        patches = np.empty((n, c, self.kernel[0] * self.kernel[1], rows, cols), x.dtype)
        for i, j, tap in self.taps(x):
            patches[:, :, i * self.kernel[1] + j] = tap
        return patches.reshape(*patches.shape[:3], rows * cols)


def convolve(x: Array, w: Array, window: Window, groups: int) -> Array:
    """Cross-correlation of ``x`` [N, C, H, W] with ``w`` [O, C/groups, kh, kw], both of one float type.

    Returns [N, O, rows, cols] in that type; the padding counts as zero.
    """
    n = len(x)
    rows, cols = window.output(*x.shape[2:])
    outputs, per_group = w.shape[:2]
    if per_group == 1 and groups > 1:
        return _depthwise(x, w, window)
    depth = per_group * window.kernel[0] * window.kernel[1]
    patches = window.columns(x).reshape(n, groups, depth, rows * cols)
    kernel = np.ascontiguousarray(w).reshape(groups, outputs // groups, depth)
    product: Array = np.matmul(kernel, patches)
    return product.reshape(n, outputs, rows, cols)


_CACHED: Final = 1 << 17
"""Elements of one map that a depthwise step should touch at once: about what a second-level cache holds."""


def _depthwise(x: Array, w: Array, window: Window) -> Array:
    """One input channel per group: a sum of shifted maps beats matrix products with one column."""
    repeat = w.shape[0] // x.shape[1]
    rows, cols = window.output(x.shape[2], x.shape[3])
    out = np.empty((x.shape[0], w.shape[0], rows, cols), x.dtype)
    step = max(1, _CACHED // max(out[:, :1].size * repeat, 1))
    for at in range(0, x.shape[1], step):
        part = np.repeat(x[:, at : at + step], repeat, axis=1) if repeat > 1 else x[:, at : at + step]
        channels = slice(at * repeat, (at + step) * repeat)
        _sum_of_taps(part, w[channels, 0], window, out[:, channels])
    return out


def _sum_of_taps(x: Array, w: Array, window: Window, out: Array) -> None:
    """``out`` [N, C, rows, cols] = each channel of ``x`` correlated with its own kernel of ``w`` [C, kh, kw]."""
    product = np.empty_like(out)
    for i, j, tap in window.taps(x):
        factor = w[:, i, j].reshape(-1, 1, 1)
        if i == j == 0:
            np.multiply(tap, factor, out=out)
        else:
            np.multiply(tap, factor, out=product)
            out += product
