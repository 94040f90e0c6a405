"""Depthwise convolutions and dense layers of few rows: operands packed for ``device/dot.cuh``."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.kernel import Site
from qcc_targets.cuda.bind import THREADS
from qcc_targets.cuda.kernel import CudaKernel
from qcc_targets.cuda.operands import depthwise_operands, operands
from qcc_targets.cuda.shape import DeviceCall, Form, device_kernel, weight_bits

_LANES: Final = 32
_WORD: Final = 4
"""Elements that one instruction multiplies."""

_FEW_ROWS: Final = 4
"""Rows of a dense layer for which no tensor core is worth its tile: a warp computes all of them."""


def depthwise(site: Site, *, halo: bool = False) -> CudaKernel | None:
    """The kernel of a depthwise convolution of aligned bytes, or None."""
    if (found := depthwise_operands(site)) is None or site.view(0).itemsize != 1 or found.vector % _WORD:
        return None
    positions = found.weights.shape[1]
    steps, quads = -(-positions // _WORD), -(-found.columns // _WORD)
    weights = np.zeros((quads * _WORD, steps * _WORD), np.int8)
    weights[: found.columns, :positions] = found.weights
    packed = np.ascontiguousarray(weights.reshape(-1, steps, _WORD).transpose(1, 0, 2))
    form = Form(quads * _WORD, steps, steps * _WORD, packed, _WORD)
    call = DeviceCall("depthwise.dot", "depthwise", (), -(-found.rows * quads // THREADS), THREADS)
    return device_kernel(site, found, form, call, halo=halo)


def row_product(site: Site) -> CudaKernel | None:
    """The kernel of a dense layer of few rows; None for others."""
    if site.op.kind != "idense" or (found := operands(site)) is None:
        return None
    if found.rows > _FEW_ROWS or (found.itemsize == 1 and found.vector % _WORD):
        return None
    bits = weight_bits(site)
    packed = row_words(found.weights, bits)
    rows = found.rows
    form = Form(found.columns, packed.shape[1], 1, packed, _WORD)
    blocks = -(-found.columns * _LANES // THREADS)
    name = f"dot.{rows}row" + (f".{bits}bit" if bits < 8 else "")
    return device_kernel(site, found, form, DeviceCall(name, "row_product", (rows, bits), blocks, THREADS), halo=False)


def row_words(weights: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Weights [columns, depth] as [columns, steps, lanes, 4]: byte i of a word holds codes i, 4 + i, … of its share."""
    parts = 8 // bits
    columns, depth = weights.shape
    full = np.pad(weights, ((0, 0), (0, -depth % (_LANES * _WORD * parts))))
    shares = (full.view(np.uint8) & ((1 << bits) - 1)).reshape(columns, -1, _LANES, parts, _WORD)
    word = np.zeros((*shares.shape[:3], _WORD), np.uint8)
    for part in range(parts):
        word |= shares[..., part, :] << bits * part
    return word
