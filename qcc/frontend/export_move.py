"""ONNX nodes of the operations of every stage: data movement and order-preserving choice."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export_builder import Builder
from qcc.ir.graph import Op
from qcc.ir.types import BATCH

Rule = Callable[[Builder, Op, Sequence[str]], str]
"""Appends the nodes of an operation, given its operands' tensors; returns the result's tensor."""


def zero_code(o: Op) -> int:
    """What real zero is among the elements of the first operand."""
    x = o.operands[0].type
    return x.quant.zero_point if x.quant is not None and x.dtype != "f32" else 0


def lowest(dtype: np.dtype[Any]) -> float:
    return -np.inf if dtype.kind == "f" else int(np.iinfo(dtype).min)


def pad_constant(b: Builder, o: Op, x: str, pads: Sequence[int], value: float) -> str:
    """``x``, of the first operand's type, padded by one value; ``pads`` are begins, then ends."""
    if not any(pads):
        return x
    fill = b.scalar(value, b.carrier(o.operands[0].type), "pad_value")
    return b.node("Pad", [x, b.ints(pads, "pads"), fill], f"{o.result.name}/padded")


def slice_axis(b: Builder, x: str, stem: str, axis: int, start: int, stop: int, step: int) -> str:
    bounds = [b.ints([v], "index") for v in (start, stop, axis, step)]
    return b.node("Slice", [x, *bounds], stem)


def spatial_pads(o: Op) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a window operation, ceil mode's share included."""
    top, left, bottom, right = o.ints_attr("pads")
    below, beyond = o.ints_attr("ceil_pads") if "ceil_pads" in o.attrs else (0, 0)
    return top, left, bottom + below, right + beyond


def window_attrs(o: Op, pads: Sequence[int]) -> dict[str, Any]:
    """Attributes of an ONNX pooling node."""
    attrs: dict[str, Any] = {"kernel_shape": o.ints_attr("kernel"), "strides": o.ints_attr("strides")}
    if set(o.ints_attr("dilations")) != {1}:
        attrs["dilations"] = o.ints_attr("dilations")
    return attrs | ({"pads": list(pads)} if any(pads) else {})


def pads_fit(o: Op, pads: Sequence[int]) -> bool:
    """Whether onnxruntime's pooling takes the padding: it must be smaller than the kernel."""
    return all(p < k for p, k in zip(pads, [*o.ints_attr("kernel")] * 2, strict=True))


def taps(b: Builder, o: Op, x: str, fill: float) -> list[str]:
    """For each kernel position the strided slice of ``x`` that it reads."""
    top, left, bottom, right = spatial_pads(o)
    x = pad_constant(b, o, x, [0, 0, top, left, 0, 0, bottom, right], fill)
    (kh, kw), (sh, sw), (dh, dw) = o.ints_attr("kernel"), o.ints_attr("strides"), o.ints_attr("dilations")
    rows, cols = o.result.type.shape[2:]
    stem = f"{o.result.name}/tap"
    views = []
    for i, j in itertools.product(range(kh), range(kw)):
        part = slice_axis(b, x, stem, 2, i * dh, i * dh + (rows - 1) * sh + 1, sh)
        views.append(slice_axis(b, part, stem, 3, j * dw, j * dw + (cols - 1) * sw + 1, sw))
    return views


def _max_pool2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    dtype = b.carrier(o.operands[0].type)
    pads = o.ints_attr("pads")
    # onnxruntime fuses a Pad into the pooling behind it, and then refuses what no longer fits.
    fused = [own + before for own, before in zip(pads, b.padding(o.operands[0]), strict=True)]
    if dtype.name in ("float32", "int8", "uint8") and pads_fit(o, fused):
        return b.node("MaxPool", xs, o.result.name, **window_attrs(o, pads))
    return b.node("Max", taps(b, o, xs[0], lowest(o.result.type.numpy)), o.result.name)


def _reduce_max(b: Builder, o: Op, xs: Sequence[str]) -> str:
    axes = b.ints(o.ints_attr("axes"), "axes")
    return b.node("ReduceMax", [xs[0], axes], o.result.name, keepdims=int(o.bool_attr("keepdims")))


def _concat(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return b.node("Concat", xs, o.result.name, axis=o.int_attr("axis"))


def _slice(b: Builder, o: Op, xs: Sequence[str]) -> str:
    axis, start, stop, step = (o.int_attr(k) for k in ("axis", "start", "stop", "step"))
    return slice_axis(b, xs[0], o.result.name, axis, start, stop, step)


def _pad(b: Builder, o: Op, xs: Sequence[str]) -> str:
    dtype = b.carrier(o.operands[0].type)
    fills = np.array(o.attrs["values"]).astype(dtype)
    padded = pad_constant(b, o, xs[0], o.ints_attr("pads"), fills.flat[0].item())
    if len(set(fills.tolist())) == 1 or padded == xs[0]:
        return padded
    # ONNX pads by one value only: a constant mask selects per-channel ones. Where has kernels for
    # few element types; int32 holds every code.
    wide = np.dtype(np.int32) if dtype.kind == "i" or dtype.kind == "u" else dtype
    inside, border = _border(o, fills.astype(wide))
    if wide != dtype:
        padded = b.cast(padded, wide, f"{o.result.name}/wide")
    picked = b.node("Where", [b.const(inside, "inside"), padded, b.const(border, "border")], o.result.name)
    return b.cast(picked, dtype, o.result.name) if wide != dtype else picked


def _border(o: Op, fills: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Where the padded tensor holds the operand (batch axis 1), and per-channel values to broadcast."""
    pads, rank = o.ints_attr("pads"), o.result.type.rank
    inside = np.zeros([1 if d == BATCH else d for d in o.result.type.shape], np.bool_)
    size = [1 if d == BATCH else d for d in o.operands[0].type.shape]
    inside[tuple(slice(p, p + d) for p, d in zip(pads[:rank], size, strict=True))] = True
    values = np.pad(fills, (pads[1], pads[rank + 1]), mode="edge")
    return inside, values.reshape([-1 if axis == 1 else 1 for axis in range(rank)])


def _reshape(b: Builder, o: Op, xs: Sequence[str]) -> str:
    # In a Reshape's shape, 0 copies the operand's dimension: the batch, wherever there is one.
    shape = b.ints([0 if d == BATCH else d for d in o.ints_attr("shape")], "shape")
    return b.node("Reshape", [xs[0], shape], o.result.name)


def _transpose(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return b.node("Transpose", xs, o.result.name, perm=o.ints_attr("perm"))


def _gather(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return gather_axis(b, xs[0], o.result.name, o.int_attr("axis"), o.ints_attr("indices"))


def gather_axis(b: Builder, x: str, stem: str, axis: int, indices: Sequence[int]) -> str:
    return b.node("Gather", [x, b.ints(indices, "indices")], stem, axis=axis)


def _dilate2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    """Give every row and column an axis of its own, pad that to the factor, and cut the last one's tail."""
    _, c, h, w = o.operands[0].type.shape
    fh, fw = o.ints_attr("factors")
    name = o.result.name
    apart = b.node("Reshape", [xs[0], b.ints([0, c, h, 1, w, 1], "shape")], f"{name}/apart")
    fill = b.scalar(zero_code(o), b.carrier(o.operands[0].type), "pad_value")
    pads = b.ints([0, 0, 0, 0, 0, 0, 0, 0, 0, fh - 1, 0, fw - 1], "pads")
    spread = b.node("Pad", [apart, pads, fill], f"{name}/spread")
    joined = b.node("Reshape", [spread, b.ints([0, c, h * fh, w * fw], "shape")], f"{name}/joined")
    rows = slice_axis(b, joined, f"{name}/rows", 2, 0, (h - 1) * fh + 1, 1)
    return slice_axis(b, rows, name, 3, 0, (w - 1) * fw + 1, 1)


def _argmax(b: Builder, o: Op, xs: Sequence[str]) -> str:
    keep = int(o.bool_attr("keepdims"))
    return b.node("ArgMax", xs, o.result.name, axis=o.int_attr("axis"), keepdims=keep)


MOVE: Final[Mapping[str, Rule]] = {
    "max_pool2d": _max_pool2d,
    "reduce_max": _reduce_max,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "gather": _gather,
    "dilate2d": _dilate2d,
    "argmax": _argmax,
}
