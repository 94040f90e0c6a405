"""Pooling over windows and over all of space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from qcc.frontend.convert.base import Converter
from qcc.frontend.convert.windows import Windows, as_1d, as_2d, auto_pad, read_windows, spatial_rank
from qcc.frontend.emit import Emitter
from qcc.frontend.node import Node
from qcc.ir.graph import Value

_LOWEST: Final = float(np.finfo(np.float32).min)


def _max_pool(node: Node, emit: Emitter) -> Value:
    x, before, after = _without_padding(emit, emit.value(node.tensor(0)))
    rank = spatial_rank(node, x)
    size = [s + b + a for s, b, a in zip(x.type.shape[2:], before, after, strict=True)]
    windows = _windows(node, size)
    ceil = _ceil_pads(node, windows, size)
    lead = [0] * (2 - rank)
    top, left = (p + b for p, b in zip(windows.begin, lead + before, strict=True))
    bottom, right = (p + a + c for p, a, c in zip(windows.end, lead + after, ceil, strict=True))
    y = emit.op(
        "max_pool2d",
        as_2d(emit, x),
        kernel=windows.kernel,
        strides=windows.strides,
        pads=(top, left, bottom, right),
        dilations=windows.dilations,
    )
    return as_1d(emit, y, rank)


def _average_pool(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    rank = spatial_rank(node, x)
    windows = _windows(node, x.type.shape[2:])
    y = emit.op(
        "avg_pool2d",
        as_2d(emit, x),
        kernel=windows.kernel,
        strides=windows.strides,
        pads=windows.pads,
        dilations=windows.dilations,
        ceil_pads=_ceil_pads(node, windows, x.type.shape[2:]),
        count_include_pad=bool(node.attr_int("count_include_pad", 0)),
    )
    return as_1d(emit, y, rank)


def _windows(node: Node, size: Sequence[int]) -> Windows:
    windows = read_windows(node, node.attr_ints("kernel_shape"), size)
    for begin, end, extent in zip(windows.begin, windows.end, windows.extent, strict=True):
        if max(begin, end) >= extent:
            raise node.error(f"pads {windows.pads} are not smaller than the kernel: a window would hold nothing")
    return windows


def _ceil_pads(node: Node, windows: Windows, size: Sequence[int]) -> tuple[int, int]:
    """Rows and columns below and right of the padded input that ``ceil_mode`` adds.

    The last window must begin inside the input or the padding before it (ONNX opset 19, PyTorch).
    """
    if not node.attr_int("ceil_mode", 0) or auto_pad(node).startswith("SAME"):
        return (0, 0)
    rows, columns = [1, *size][-2:]
    extra = []
    for axis, s in enumerate((rows, columns)):
        begin, stride = windows.begin[axis], windows.strides[axis]
        padded, extent = s + begin + windows.end[axis], windows.extent[axis]
        count = -(-(padded - extent) // stride) + 1
        if (count - 1) * stride >= s + begin:
            count -= 1
        extra.append(max(0, (count - 1) * stride + extent - padded))
    return (extra[0], extra[1])


def _without_padding(emit: Emitter, x: Value) -> tuple[Value, list[int], list[int]]:
    """``x`` before a Pad with minus infinity, and what that padded before and after each spatial axis.

    Exporters write the implicit padding of a max pooling so where it is uneven.
    """
    producer, rank = emit.producer(x), x.type.rank
    if producer is not None and producer.kind == "pad" and max(producer.floats_attr("values")) <= _LOWEST:
        pads = list(producer.ints_attr("pads"))
        if not any((*pads[:2], *pads[rank : rank + 2])):
            return producer.operands[0], pads[2:rank], pads[rank + 2 :]
    return x, [0] * max(0, rank - 2), [0] * max(0, rank - 2)


def _global(kind: str) -> Converter:
    def convert(node: Node, emit: Emitter) -> Value:
        x = emit.value(node.tensor(0))
        if x.type.rank < 3:
            raise node.error(f"its input of shape {list(x.type.shape)} has no spatial axis")
        return emit.op(kind, x, axes=tuple(range(2, x.type.rank)), keepdims=True)

    return convert


CONVERTERS: Final[Mapping[str, Converter]] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalMaxPool": _global("reduce_max"),
    "GlobalAveragePool": _global("reduce_mean"),
}
