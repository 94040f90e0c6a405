"""ONNX nodes of the real operations of stages FLOAT and QUANTIZED, in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from qcc.frontend.export_builder import Builder
from qcc.frontend.export_expr import map_nodes
from qcc.frontend.export_move import Rule, gather_axis, pads_fit, spatial_pads, taps, window_attrs
from qcc.ir.graph import Op


def clamped(b: Builder, o: Op, x: str) -> str:
    """``x`` within the operation's fused ``lo`` and ``hi``."""
    lo, hi = o.float_attr("lo", -math.inf), o.float_attr("hi", math.inf)
    if lo == 0 and hi == math.inf:
        return b.node("Relu", [x], o.result.name)
    if lo == -math.inf and hi == math.inf:
        return x
    low = "" if lo == -math.inf else b.scalar(lo, np.float32, "lo")
    high = "" if hi == math.inf else b.scalar(hi, np.float32, "hi")
    return b.node("Clip", [x, low, high] if high else [x, low], o.result.name)


def _residual(b: Builder, o: Op, x: str, rest: Sequence[str]) -> str:
    for r in rest:
        x = b.node("Add", [x, r], o.result.name)
    return clamped(b, o, x)


def _conv_attrs(o: Op) -> dict[str, Any]:
    kernel = o.operands[1].type.shape[2:]
    shared = {name: o.ints_attr(name) for name in ("strides", "pads", "dilations")}
    return {"kernel_shape": kernel, "group": o.int_attr("groups"), **shared}


def _conv2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return _residual(b, o, b.node("Conv", xs[:3], o.result.name, **_conv_attrs(o)), xs[3:])


def _conv_transpose2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    extra = o.ints_attr("output_padding")
    return b.node("ConvTranspose", xs, o.result.name, output_padding=extra, **_conv_attrs(o))


def _dense(b: Builder, o: Op, xs: Sequence[str]) -> str:
    x, w, bias, *rest = xs
    if o.operands[0].type.rank == 2:
        y = b.node("Gemm", [x, w, bias], o.result.name, transB=1)
    else:
        turned = b.node("Transpose", [w], f"{o.result.name}/w", perm=[1, 0])
        y = b.node("Add", [b.node("MatMul", [x, turned], f"{o.result.name}/xw"), bias], o.result.name)
    return _residual(b, o, y, rest)


def _batch_norm(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return b.node("BatchNormalization", xs, o.result.name, epsilon=o.float_attr("epsilon"))


def _avg_pool2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    """What ceil mode adds never counts: beside padding that counts, no attribute of AveragePool says so."""
    pads, counted = spatial_pads(o), o.bool_attr("count_include_pad")
    if not pads_fit(o, pads) or (counted and any(o.ints_attr("ceil_pads"))):
        return clamped(b, o, _average_of_taps(b, o, xs[0]))
    attrs = window_attrs(o, pads) | ({"count_include_pad": 1} if counted and any(pads) else {})
    return clamped(b, o, b.node("AveragePool", xs, o.result.name, **attrs))


def _average_of_taps(b: Builder, o: Op, x: str) -> str:
    counts = np.float32(1) / averaged(o).astype(np.float32)
    total = b.node("Sum", taps(b, o, x, 0.0), f"{o.result.name}/sum")
    return b.node("Mul", [total, b.const(counts, "share")], o.result.name)


def averaged(o: Op) -> np.ndarray[Any, np.dtype[Any]]:
    """Elements under each window of an average pooling, [1, 1, rows, cols]; at least one."""
    explicit, whole = o.ints_attr("pads"), spatial_pads(o)
    (kh, kw), (sh, sw), (dh, dw) = o.ints_attr("kernel"), o.ints_attr("strides"), o.ints_attr("dilations")
    rows, cols = o.result.type.shape[2:]
    counted = explicit if o.bool_attr("count_include_pad") else (0, 0, 0, 0)
    lines = []
    for axis, (size, kernel, stride, dilation, count) in enumerate(
        zip(o.operands[0].type.shape[2:], (kh, kw), (sh, sw), (dh, dw), (rows, cols), strict=True)
    ):
        at = np.arange(count)[:, None] * stride + np.arange(kernel) * dilation - whole[axis]
        lines.append(((at >= -counted[axis]) & (at < size + counted[axis + 2])).sum(axis=1))
    return np.maximum(np.outer(lines[0], lines[1]), 1)[None, None]


def _reduce(kind: str) -> Rule:
    def rule(b: Builder, o: Op, xs: Sequence[str]) -> str:
        axes = b.ints(o.ints_attr("axes"), "axes")
        return clamped(b, o, b.node(kind, [xs[0], axes], o.result.name, keepdims=int(o.bool_attr("keepdims"))))

    return rule


def _resize_linear(b: Builder, o: Op, xs: Sequence[str]) -> str:
    rows = _blend(b, o, xs[0], 2, "h", (-1, 1))
    return clamped(b, o, _blend(b, o, rows, 3, "w", (-1,)))


def _blend(b: Builder, o: Op, x: str, axis: int, letter: str, shape: tuple[int, ...]) -> str:
    """(1 - f) times the elements at the low indices, plus f times those at the high ones."""
    high = np.array(o.floats_attr(f"{letter}f"), np.float32).reshape(shape)
    parts = []
    for index, weight in (("0", 1 - high), ("1", high)):
        picked = gather_axis(b, x, f"{o.result.name}/{letter}{index}", axis, o.ints_attr(letter + index))
        parts.append(b.node("Mul", [picked, b.const(weight, "weight")], f"{o.result.name}/part"))
    return b.node("Add", parts, o.result.name)


def _softmax(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return b.node("Softmax", xs, o.result.name, axis=o.int_attr("axis"))


def _clip(b: Builder, o: Op, xs: Sequence[str]) -> str:
    return clamped(b, o, xs[0])


def _plain(kind: str) -> Rule:
    def rule(b: Builder, o: Op, xs: Sequence[str]) -> str:
        return clamped(b, o, b.node(kind, xs, o.result.name))

    return rule


REAL: Final[Mapping[str, Rule]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "dense": _dense,
    "matmul": _plain("MatMul"),
    "add": _plain("Add"),
    "sub": _plain("Sub"),
    "mul": _plain("Mul"),
    "div": _plain("Div"),
    "clip": _clip,
    "map": map_nodes,
    "avg_pool2d": _avg_pool2d,
    "reduce_mean": _reduce("ReduceMean"),
    "reduce_sum": _reduce("ReduceSum"),
    "resize_linear": _resize_linear,
    "softmax": _softmax,
    "batch_norm": _batch_norm,
}
