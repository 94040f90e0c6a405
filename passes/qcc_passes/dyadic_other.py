"""Tables, pools, reductions, resizing, softmax and data movement as integers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir import expr
from qcc.ir.graph import Op, Value
from qcc.ir.types import DTYPES
from qcc.verify.interp_real import averaged
from qcc_passes.dyadic_lowering import Lowering, LoweringRule, grid, requant
from qcc_passes.dyadic_scale import scale
from qcc_passes.quantize_grids import MOVES

RESIZE_BITS: Final = 11
"""Blending fractions of a resize are integers in units of 2**-11."""

_EXP_ONE: Final = 65535
"""exp(0) in a softmax's table."""


def _map(low: Lowering, o: Op) -> None:
    """A table over all 256 codes; one row per channel where parameters differ between channels."""
    x, *parameters = o.operands
    codes = _codes(o, x)
    reals = grid(x, o).dequantize(codes).astype(np.float64)
    rows = [_row(low, o, v, x) for v in parameters]
    env = {"x": reals} | {f"p{i}": row for i, row in enumerate(rows)}
    values = expr.evaluate(expr.parse(o.str_attr("fn")), env)
    values = np.broadcast_to(values, (*np.broadcast_shapes(*(r.shape[:-1] for r in rows)), len(codes)))
    table = grid(o.result, o).plain.quantize(_defined(o, values).astype(np.float32))
    low.emit("ilookup", [low.read(x), low.give(o, "table", table)], o)


def _defined(o: Op, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """``values`` [..., 256] with those outside the function's domain taken from the nearest code inside it."""
    inside = ~np.isnan(values)
    if not inside.any(axis=-1).all():
        raise PassError(f"{o}: the function is undefined over the whole range of its operand")
    rows = values.reshape(-1, values.shape[-1]).copy()
    for row, known in zip(rows, inside.reshape(rows.shape), strict=True):
        at = np.flatnonzero(known)
        nearest = at[np.abs(np.arange(len(row))[:, None] - at).argmin(axis=1)]
        row[:] = row[nearest]
    return rows.reshape(values.shape)


def _row(low: Lowering, o: Op, v: Value, x: Value) -> NDArray[np.float64]:
    """A parameter of a map as [1], or as [C, 1] where it varies along axis 1."""
    array = low.array(v)
    if array is None:
        raise PassError(f"{o}: the parameter %{v.name} must be a constant")
    if array.size == 1:
        return array.astype(np.float64).reshape(1)
    shape = (1,) * (x.type.rank - array.ndim) + array.shape
    if x.type.rank < 2 or array.size != shape[1]:
        raise PassError(f"{o}: the parameter %{v.name} varies along other axes than the channels, which no table holds")
    return array.astype(np.float64).reshape(-1, 1)


def _codes(o: Op, x: Value) -> NDArray[Any]:
    """Every code of the element type of ``x``, lowest first."""
    dtype = DTYPES[grid(x, o).dtype]
    if dtype.itemsize != 1:
        raise PassError(f"{o}: a table has 256 entries, but %{x.name} is {dtype.itemsize * 8} bits wide")
    info = np.iinfo(dtype)
    return np.arange(int(info.min), int(info.max) + 1).astype(dtype)


def _averaging(low: Lowering, o: Op, kind: str, counts: NDArray[Any], unit: Fraction, **attrs: Any) -> None:
    """A sum whose divisor, one of ``counts`` per result element, is folded into m; ``unit`` is one step of it."""
    (x,) = o.operands
    step = scale(grid(x, o)) * unit / scale(grid(o.result, o))
    ratios = {int(n): step / int(n) for n in np.unique(counts)}
    end = requant(o, list(ratios.values()))
    m = np.vectorize(lambda n: end.multiplier(ratios[int(n)]), otypes=[np.int32])(counts)
    c = np.array([end.offset(str(o))], np.int64)
    low.emit(kind, [low.read(x), low.give(o, "m", m), low.give(o, "c", c)], o, **attrs, **end.attrs)


def _avg_pool2d(low: Lowering, o: Op) -> None:
    height, width = o.operands[0].type.shape[2:]
    counts = averaged(o, height, width)
    if (counts == counts.flat[0]).all():
        counts = counts.flat[:1]
    top, left, bottom, right = o.ints_attr("pads")
    below, beyond = o.ints_attr("ceil_pads")
    window = {k: o.ints_attr(k) for k in ("kernel", "strides", "dilations")}
    pads = (top, left, bottom + below, right + beyond)
    _averaging(low, o, "isum_pool2d", counts, Fraction(1), pads=pads, **window)


def _reduce(low: Lowering, o: Op) -> None:
    axes = o.ints_attr("axes")
    count = math.prod(o.operands[0].type.shape[a] for a in axes) if o.kind == "reduce_mean" else 1
    attrs = {"axes": axes, "keepdims": o.bool_attr("keepdims")}
    _averaging(low, o, "ireduce_sum", np.array([count]), Fraction(1), **attrs)


def _resize_linear(low: Lowering, o: Op) -> None:
    attrs = {k: o.ints_attr(k) for k in ("h0", "h1", "w0", "w1")}
    for name in ("hf", "wf"):
        attrs[name] = tuple(round(f * (1 << RESIZE_BITS)) for f in o.floats_attr(name))
    _averaging(low, o, "iresize_linear", np.array([1]), Fraction(1, 1 << 2 * RESIZE_BITS), **attrs)


def _softmax(low: Lowering, o: Op) -> None:
    """The table holds exp(-d * step) for every distance d from the maximum."""
    (x,) = o.operands
    _codes(o, x)
    exponents = -np.arange(256) * float(scale(grid(x, o)))
    table = np.rint(_EXP_ONE * np.exp(exponents)).astype(np.int32)
    low.emit("isoftmax", [low.read(x), low.give(o, "table", table)], o, axis=o.int_attr("axis"))


def _pad(low: Lowering, o: Op) -> None:
    """Real values become codes."""
    reals = np.array(o.floats_attr("values"), np.float64)
    codes = grid(o.result, o).quantize(reals)
    low.move(o, values=tuple(int(q) for q in codes))


RULES: Final[Mapping[str, LoweringRule]] = {
    **dict.fromkeys(MOVES, Lowering.move),
    "argmax": Lowering.move,
    "pad": _pad,
    "map": _map,
    "avg_pool2d": _avg_pool2d,
    "reduce_mean": _reduce,
    "reduce_sum": _reduce,
    "resize_linear": _resize_linear,
    "softmax": _softmax,
}
