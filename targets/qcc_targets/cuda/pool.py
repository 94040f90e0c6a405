"""Maxima of windows over bytes: the arguments of ``device/pool.cuh``."""

from __future__ import annotations

from typing import Final

import numpy as np

from qcc_targets.cpu.generic.conv import window_start
from qcc_targets.cpu.kernel import Site, View, pack
from qcc_targets.cuda.bind import THREADS
from qcc_targets.cuda.kernel import CudaKernel
from qcc_targets.cuda.shape import calling

_WORD: Final = 4
"""Channels that a thread computes."""


def max_pool(site: Site) -> CudaKernel | None:
    """The kernel of a maximum over windows of aligned bytes; None for others."""
    if site.op.kind != "max_pool2d":
        return None
    x, y = site.view(0), site.output
    (kh, kw), (sh, sw), (dh, dw) = (site.op.ints_attr(k) for k in ("kernel", "strides", "dilations"))
    walk = (x.offset + window_start(site), x.sample_stride, sh * x.row_stride, sw * x.pixel_stride)
    positions = [i * dh * x.row_stride + j * dw * x.pixel_stride for i in range(kh) for j in range(kw)]
    if x.itemsize != 1 or x.strides[1] != 1 or y.strides[1] != 1 or any(n % _WORD for n in (*walk, *positions)):
        return None
    rows, quads = y.samples * y.height * y.width, -(-y.channels // _WORD)
    numbers = [rows, y.channels, quads, len(positions), y.height * y.width, y.width, *walk, *_walk(y), _words(y)]
    shape = np.array([*numbers, 0], np.int32)
    _, (_, shape[-1]) = pack(shape, np.array(positions, np.int32))
    blob = pack(shape, np.array(positions, np.int32))[0]
    symbol = f"qcc::max_pool<{x.tvm_dtype}_t>"
    return calling(site, "max_pool2d.words", symbol, "xcy", blob, -(-rows * quads // THREADS), THREADS)


def _walk(view: View) -> tuple[int, int, int, int]:
    return view.offset, view.sample_stride, view.row_stride, view.pixel_stride


def _words(view: View) -> bool:
    return not view.external and all(n % _WORD == 0 for n in _walk(view))
