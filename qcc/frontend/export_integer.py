"""ONNX nodes of the integer operations: integer kernels only, exact under onnxruntime.

    acc = ConvInteger / MatMulInteger                     int32
    p   = Mul(Cast(acc -> int64), m) + (c + 2**62)        int64, positive
    q   = BitShift(Cast(p -> uint64), shift, RIGHT)       signed BitShift is newer than onnxruntime loads
    y   = Clip(Cast(q -> int64) - 2**(62 - shift), qmin, qmax)

An epilogue that may reach 2**62 has its sign corrected after the shift instead of being offset. One
that may leave int32 after the shift is clamped by comparisons: onnxruntime 1.31's vectorized Clip, Min
and Max compare the low words of int64 as signed where the high words are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export_builder import Builder
from qcc.frontend.export_move import Rule, gather_axis
from qcc.frontend.export_planes import Plane, activation_planes, sum_of_products, weight_planes, zero_point
from qcc.ir.graph import Op
from qcc.ir.packing import code_bits

Array = NDArray[Any]


def wide(b: Builder, tensor: str, stem: str) -> str:
    return b.cast(tensor, np.int64, stem)


def requantized(b: Builder, o: Op, total: str, c: Array) -> str:
    """clamp((total + c) >> shift, qmin, qmax), from ``total`` int64."""
    name, shift = o.result.name, o.int_attr("shift")
    if b.reach(o) < 1 << 62:
        raised = b.node("Add", [total, b.const(c + np.int64(1 << 62), "c")], f"{name}/raised")
        shifted = _shift(b, raised, shift, name)
        lowered = b.node("Sub", [shifted, b.scalar(1 << (62 - shift), np.int64, "offset")], f"{name}/lowered")
    else:
        exact = b.node("Add", [total, b.const(c, "c")], f"{name}/exact")
        lowered = _signed_shift(b, exact, shift, name)
    clipped = _clipped(b, o, lowered, small=b.reach(o) >> shift < (1 << 31) - 1)
    return b.cast(clipped, b.carrier(o.result.type), name)


def _clipped(b: Builder, o: Op, x: str, *, small: bool) -> str:
    """``x`` int64 within qmin and qmax; ``small``: it fits int32 in any case."""
    low, high = (b.scalar(o.int_attr(k), np.int64, k) for k in ("qmin", "qmax"))
    stem = f"{o.result.name}/clipped"
    if small:
        return b.node("Clip", [x, low, high], stem)
    raised = b.node("Where", [b.node("Less", [x, low], f"{stem}/below"), low, x], stem)
    return b.node("Where", [b.node("Greater", [raised, high], f"{stem}/above"), high, raised], stem)


def _shift(b: Builder, total: str, shift: int, name: str) -> str:
    bits = b.cast(total, np.uint64, f"{name}/bits")
    down = b.node("BitShift", [bits, b.scalar(shift, np.uint64, "shift")], f"{name}/down", direction="RIGHT")
    return wide(b, down, f"{name}/shifted")


def _signed_shift(b: Builder, total: str, shift: int, name: str) -> str:
    """The floor shift of any int64: its bits shifted, less 2**(64 - shift) where it is negative."""
    negative = b.node("Less", [total, b.scalar(0, np.int64, "zero")], f"{name}/negative")
    excess = b.scalar(1 << (64 - shift) if shift > 1 else -(1 << 63), np.int64, "excess")
    correction = b.node("Where", [negative, excess, b.scalar(0, np.int64, "zero")], f"{name}/correction")
    return b.node("Sub", [_shift(b, total, shift, name), correction], f"{name}/lowered")


def _scaled(b: Builder, o: Op, acc: str, m: Array) -> str:
    name = o.result.name
    return b.node("Mul", [wide(b, acc, f"{name}/wide"), b.const(m.astype(np.int64), "m")], f"{name}/scaled")


def _linear_epilogue(b: Builder, o: Op, acc: str, xs: Sequence[str], shape: tuple[int, ...]) -> str:
    """Per-channel m, c, and the residual; ``shape`` broadcasts a vector over output channels."""
    total = _scaled(b, o, acc, b.array(o, 2).reshape(shape))
    if len(xs) == 6:
        residual = wide(b, xs[4], f"{o.result.name}/residual")
        mr = b.const(b.array(o, 5).astype(np.int64).reshape(shape), "mr")
        total = b.node("Add", [total, b.node("Mul", [residual, mr], f"{o.result.name}/rm")], f"{o.result.name}/sum")
    return requantized(b, o, total, b.array(o, 3).reshape(shape))


def _iconv2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    w, codes = o.operands[1], b.array(o, 1)
    weights = weight_planes(b, f"{o.result.name}/w", codes, zero_point(w), code_bits(w, codes))
    acc = _conv(b, o, xs[0], weights, o.operands[1].type.shape[2:], o.int_attr("groups"))
    return _linear_epilogue(b, o, acc, xs, (-1, 1, 1))


def _conv(b: Builder, o: Op, x: str, weights: Sequence[Plane], kernel: Sequence[int], groups: int) -> str:
    attrs = {name: o.ints_attr(name) for name in ("strides", "pads", "dilations")}
    planes = activation_planes(b, o, 0, x)
    return sum_of_products(b, o, "ConvInteger", planes, weights, kernel_shape=tuple(kernel), group=groups, **attrs)


def _idense(b: Builder, o: Op, xs: Sequence[str]) -> str:
    w, codes = o.operands[1], b.array(o, 1)
    weights = weight_planes(b, f"{o.result.name}/w", codes.T, zero_point(w), code_bits(w, codes))
    acc = sum_of_products(b, o, "MatMulInteger", activation_planes(b, o, 0, xs[0]), weights)
    return _linear_epilogue(b, o, acc, xs, (-1,))


def _imatmul(b: Builder, o: Op, xs: Sequence[str]) -> str:
    left, right = activation_planes(b, o, 0, xs[0]), activation_planes(b, o, 1, xs[1], unsigned=True)
    acc = sum_of_products(b, o, "MatMulInteger", left, right)
    return requantized(b, o, _scaled(b, o, acc, b.array(o, 2)), b.array(o, 3))


def _isum_pool2d(b: Builder, o: Op, xs: Sequence[str]) -> str:
    """A depthwise convolution with ones."""
    channels, kernel = o.operands[0].type.shape[1], o.ints_attr("kernel")
    ones = weight_planes(b, f"{o.result.name}/ones", np.ones((channels, 1, *kernel), np.uint8), 0)
    acc = _conv(b, o, xs[0], ones, kernel, channels)
    return requantized(b, o, _scaled(b, o, acc, b.array(o, 1)), b.array(o, 2))


def _shifted(b: Builder, o: Op, slot: int, x: str) -> str:
    """Codes less their zero point, as int64."""
    codes, zero = wide(b, x, f"{o.result.name}/x"), zero_point(o.operands[slot])
    if not zero:
        return codes
    return b.node("Sub", [codes, b.scalar(zero, np.int64, "zero_point")], f"{o.result.name}/centred")


def _ilinear(b: Builder, o: Op, xs: Sequence[str]) -> str:
    total = ""
    for slot in range(1, len(xs), 2):
        term = _scaled(b, o, xs[slot], b.array(o, slot + 1))
        total = b.node("Add", [total, term], f"{o.result.name}/sum") if total else term
    return requantized(b, o, total, b.array(o, 0))


def _imul(b: Builder, o: Op, xs: Sequence[str]) -> str:
    product = b.node("Mul", [_shifted(b, o, 0, xs[0]), _shifted(b, o, 1, xs[1])], f"{o.result.name}/product")
    scaled = b.node("Mul", [product, b.const(b.array(o, 2).astype(np.int64), "m")], f"{o.result.name}/scaled")
    return requantized(b, o, scaled, b.array(o, 3))


def _ilookup(b: Builder, o: Op, xs: Sequence[str]) -> str:
    """Gather from the table, or from its rows laid end to end."""
    x, table, name = o.operands[0].type, b.array(o, 1), o.result.name
    index = b.cast(xs[0], np.int32, f"{name}/index")
    offset = np.array(-np.iinfo(x.numpy).min, np.int32)
    if table.ndim == 2:
        rows = np.arange(len(table), dtype=np.int32) * table.shape[1]
        offset = offset + rows.reshape([-1 if axis == 1 else 1 for axis in range(x.rank)])
    if offset.any():
        index = b.node("Add", [index, b.const(offset.astype(np.int32), "offset")], f"{name}/index")
    flat = table.reshape(-1).astype(b.carrier(o.result.type))
    return b.node("Gather", [b.const(flat, "table"), index], name, axis=0)


def _ireduce_sum(b: Builder, o: Op, xs: Sequence[str]) -> str:
    axes, keep = b.ints(o.ints_attr("axes"), "axes"), int(o.bool_attr("keepdims"))
    acc = b.node("ReduceSum", [_shifted(b, o, 0, xs[0]), axes], f"{o.result.name}/acc", keepdims=keep)
    return requantized(b, o, _scaled(b, o, acc, b.array(o, 1)), b.array(o, 2))


_RESIZE_ONE: Final = 1 << 11


def _iresize_linear(b: Builder, o: Op, xs: Sequence[str]) -> str:
    rows = _blend(b, o, _shifted(b, o, 0, xs[0]), 2, "h", (-1, 1))
    acc = _blend(b, o, rows, 3, "w", (-1,))
    return requantized(b, o, _scaled(b, o, acc, b.array(o, 1)), b.array(o, 2))


def _blend(b: Builder, o: Op, x: str, axis: int, letter: str, shape: tuple[int, ...]) -> str:
    high = np.array(o.ints_attr(f"{letter}f"), np.int64).reshape(shape)
    parts = []
    for index, weight in (("0", _RESIZE_ONE - high), ("1", high)):
        picked = gather_axis(b, x, f"{o.result.name}/{letter}{index}", axis, o.ints_attr(letter + index))
        parts.append(b.node("Mul", [picked, b.const(weight, "weight")], f"{o.result.name}/part"))
    return b.node("Add", parts, f"{o.result.name}/blend")


def _isoftmax(b: Builder, o: Op, xs: Sequence[str]) -> str:
    """Operands of the division are positive, so its truncation is the floor."""
    name, axis = o.result.name, b.ints([o.int_attr("axis")], "axes")
    codes = b.cast(xs[0], np.int32, f"{name}/x")
    top = b.node("ReduceMax", [codes, axis], f"{name}/max", keepdims=1)
    table = b.const(b.array(o, 1).astype(np.int64), "table")
    e = b.node("Gather", [table, b.node("Sub", [top, codes], f"{name}/below")], f"{name}/e", axis=0)
    total = b.node("ReduceSum", [e, axis], f"{name}/sum", keepdims=1)
    reciprocal = b.node("Div", [b.scalar(1 << 40, np.int64, "one"), total], f"{name}/reciprocal")
    product = b.node("Mul", [e, reciprocal], f"{name}/product")
    rounded = b.node("Add", [product, b.scalar(1 << 31, np.int64, "half")], f"{name}/rounded")
    y = b.node("Min", [_shift(b, rounded, 32, name), b.scalar(255, np.int64, "qmax")], f"{name}/clipped")
    return b.cast(y, np.uint8, name)


INTEGER: Final[Mapping[str, Rule]] = {
    "iconv2d": _iconv2d,
    "idense": _idense,
    "imatmul": _imatmul,
    "ilinear": _ilinear,
    "imul": _imul,
    "ilookup": _ilookup,
    "isum_pool2d": _isum_pool2d,
    "ireduce_sum": _ireduce_sum,
    "iresize_linear": _iresize_linear,
    "isoftmax": _isoftmax,
}
