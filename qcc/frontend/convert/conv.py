"""Convolutions and batch normalization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.convert.base import Converter
from qcc.frontend.convert.windows import Windows, as_1d, as_2d, auto_pad, read_windows, share, spatial_rank
from qcc.frontend.emit import Emitter
from qcc.frontend.node import Known, Node, UnsupportedNodeError
from qcc.ir.graph import Value


def _conv(node: Node, emit: Emitter) -> Value:
    x, weights, groups = _operands(node, emit)
    rank = x.type.rank - 2
    kernel = node.attr_ints("kernel_shape", weights.shape[2:])
    if tuple(kernel) != weights.shape[2:]:
        raise node.error(f"kernel_shape {kernel} contradicts weights of shape {list(weights.shape)}")
    windows = read_windows(node, kernel, x.type.shape[2:])
    bias = _bias(node, emit, weights.shape[0])
    y = emit.op(
        "conv2d",
        as_2d(emit, x),
        _weights_2d(node, emit),
        bias,
        strides=windows.strides,
        pads=windows.pads,
        dilations=windows.dilations,
        groups=groups,
    )
    return as_1d(emit, y, rank)


def _conv_transpose(node: Node, emit: Emitter) -> Value:
    x, weights, groups = _operands(node, emit)
    rank = x.type.rank - 2
    kernel = node.attr_ints("kernel_shape", weights.shape[2:])
    if tuple(kernel) != weights.shape[2:]:
        raise node.error(f"kernel_shape {kernel} contradicts weights of shape {list(weights.shape)}")
    windows, extra = _transposed_windows(node, kernel, x.type.shape[2:])
    y = emit.op(
        "conv_transpose2d",
        as_2d(emit, x),
        _weights_2d(node, emit),
        _bias(node, emit, weights.shape[1] * groups),
        strides=windows.strides,
        pads=windows.pads,
        dilations=windows.dilations,
        groups=groups,
        output_padding=extra,
    )
    return as_1d(emit, y, rank)


def _transposed_windows(node: Node, kernel: Sequence[int], size: Sequence[int]) -> tuple[Windows, tuple[int, int]]:
    """Windows and output padding, from ``pads``, ``auto_pad`` or ``output_shape``.

    Where the padding is odd, the larger half comes first unless ``auto_pad`` is SAME_UPPER.
    """
    rank = len(size)
    windows = read_windows(node, kernel, size)
    extra = node.attr_ints("output_padding", [0] * rank)
    if len(extra) != rank or min(extra) < 0:
        raise node.error(f"output_padding {extra} must be {rank} sizes")
    output = node.attr_ints("output_shape", [])[-rank:]
    mode, strides = auto_pad(node), windows.strides[-rank:]
    automatic = not output and mode.startswith("SAME")
    if automatic:
        output = [s * step for s, step in zip(size, strides, strict=True)]
    if output:
        if len(output) != rank or min(output) < 1:
            raise node.error(f"output_shape {output} must be {rank} positive sizes")
        full = [
            step * (s - 1) + e + reach
            for s, step, e, reach in zip(size, strides, extra, windows.extent[-rank:], strict=True)
        ]
        totals = [f - o for f, o in zip(full, output, strict=True)]
        if automatic:  # onnxruntime does not enlarge where the kernel is smaller than the stride
            totals = [max(0, t) for t in totals]
        if any(-t >= step for t, step in zip(totals, strides, strict=True)):
            raise node.error(f"output_shape {output} is out of reach: its windows end at {full}")
        extra = [e + max(0, -t) for e, t in zip(extra, totals, strict=True)]
        begin, end = share([max(0, t) for t in totals], mode if mode == "SAME_UPPER" else "SAME_LOWER")
        lead = [0] * (2 - rank)
        windows = replace(windows, begin=_pair(lead + begin), end=_pair(lead + end))
    return windows, _pair([0] * (2 - rank) + extra)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _operands(node: Node, emit: Emitter) -> tuple[Value, NDArray[Any], int]:
    x = emit.value(node.tensor(0))
    weights = node.fixed(1, "weight")
    if weights.ndim - 2 != spatial_rank(node, x):
        raise node.error(f"weights of shape {list(weights.shape)} do not fit input {list(x.type.shape)}")
    groups = node.attr_int("group", 1)
    if not 1 <= groups <= x.type.shape[1]:
        raise node.error(f"{x.type.shape[1]} channels do not fit {groups} groups")
    return x, weights, groups


def _weights_2d(node: Node, emit: Emitter) -> Value:
    """The weights' constant, shared with other users unless it has to change shape."""
    tensor = node.tensor(1)
    if isinstance(tensor, Known) and tensor.array.ndim == 3:
        array = tensor.array
        return emit.constant(array.reshape(*array.shape[:2], 1, array.shape[2]), tensor.name)
    return emit.value(tensor)


def _bias(node: Node, emit: Emitter, channels: int) -> Value:
    if not node.has(2):
        return emit.constant(np.zeros(channels, np.float32), f"{emit.stem}.bias")
    bias = node.fixed(2, "bias")
    if bias.shape != (channels,):
        raise node.error(f"bias of shape {list(bias.shape)} does not fit {channels} channels")
    return emit.value(node.tensor(2))


def _batch_norm(node: Node, emit: Emitter) -> Value:
    if node.attr_int("training_mode", 0):
        raise UnsupportedNodeError("it is in training mode", "export the model for inference")
    x = emit.value(node.tensor(0))
    if x.type.rank < 2:
        raise node.error(f"its input of shape {list(x.type.shape)} has no channel axis")
    parameters = []
    for index, what in enumerate(("scale", "bias", "mean", "variance"), 1):
        array = node.fixed(index, what)
        if array.shape != x.type.shape[1:2]:
            raise node.error(f"{what} of shape {list(array.shape)} does not fit {x.type.shape[1]} channels")
        parameters.append(emit.value(node.tensor(index)))
    return emit.op("batch_norm", x, *parameters, epsilon=node.attr_float("epsilon", 1e-5))


CONVERTERS: Final[Mapping[str, Converter]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
}
