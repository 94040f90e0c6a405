"""Integer operations of stage INTEGER: exact definitions, whatever the order of summation.

Sums of products run through floating-point BLAS and are exact all the same: with
B = sum |w| * max|x - zero point|, every product and every partial sum, in any order and with or
without fused multiply-add, is an integer of magnitude at most B. A float32 holds every integer up to
2**24 and a float64 up to 2**53, so no operation ever rounds when B is below that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Op, Value
from qcc.ir.types import TensorType
from qcc.verify.interp_move import Rule
from qcc.verify.windows import Window, convolve

Array = NDArray[Any]


def requantize(o: Op, total: Array) -> Array:
    """clamp(total >> shift, qmin, qmax) as the result's type; ``total`` int64 holds acc*m + c and is overwritten."""
    np.right_shift(total, o.int_attr("shift"), out=total)
    np.clip(total, o.int_attr("qmin"), o.int_attr("qmax"), out=total)
    return total.astype(o.result.type.numpy)


def zero_point(type_: TensorType) -> int:
    return 0 if type_.quant is None else type_.quant.zero_point


def magnitude(type_: TensorType) -> int:
    """The greatest |code - zero point| that the element type can hold."""
    info = np.iinfo(type_.numpy)
    zero = zero_point(type_)
    return max(int(info.max) - zero, zero - int(info.min))


def _float_for(o: Op, bound: int) -> type[np.floating[Any]]:
    """The floating type whose sums are exact up to ``bound``."""
    if bound < 1 << 24:
        return np.float32
    if bound < 1 << 53:
        return np.float64
    raise VerifyError(f"{o}: sums may reach {bound}, far beyond a 32-bit accumulator")


def _weights(o: Op, codes: Array) -> tuple[Array, type[np.floating[Any]]]:
    """Weights less their zero point, in a floating type that sums them exactly with the first operand."""
    wide = codes.astype(np.int64) - zero_point(o.operands[1].type)
    rows = np.abs(wide).reshape(len(wide), -1).sum(axis=1)
    dtype = _float_for(o, int(rows.max()) * magnitude(o.operands[0].type))
    return wide.astype(dtype), dtype


def _shifted(value: Value, codes: Array, dtype: Any) -> Array:
    """Codes less their zero point, as ``dtype``."""
    out: Array = codes.astype(dtype)
    if zero := zero_point(value.type):
        out -= dtype(zero)
    return out


def _per_channel(vector: Array) -> Array:
    """A per-output-channel vector ([O], [1] or a scalar) shaped against [N, O, H, W], int64."""
    return vector.astype(np.int64).reshape(-1, 1, 1)


def _iconv2d(o: Op, xs: Sequence[Array]) -> Array:
    """``m``, ``c`` and ``mr`` have one entry per output channel, or one; ``r`` counts as raw codes."""
    x, codes, m, c, *residual = xs
    w, dtype = _weights(o, codes)
    acc = convolve(_shifted(o.operands[0], x, dtype), w, Window.of(o), o.int_attr("groups"))
    total = acc.astype(np.int64)
    total *= _per_channel(m)
    if residual:
        r, mr = residual
        total += r * _per_channel(mr)
    total += _per_channel(c)
    return requantize(o, total)


def _idense(o: Op, xs: Sequence[Array]) -> Array:
    """``m``, ``c`` and ``mr`` have one entry per output feature, or one; ``r`` counts as raw codes."""
    x, codes, m, c, *residual = xs
    w, dtype = _weights(o, codes)
    total: Array = np.matmul(_shifted(o.operands[0], x, dtype), w.T).astype(np.int64)
    total *= m
    if residual:
        r, mr = residual
        total += r * mr.astype(np.int64)
    total += c
    return requantize(o, total)


def _imatmul(o: Op, xs: Sequence[Array]) -> Array:
    a, b, m, c = xs
    bound = a.shape[-1] * magnitude(o.operands[0].type) * magnitude(o.operands[1].type)
    dtype = _float_for(o, bound)
    total: Array = np.matmul(_shifted(o.operands[0], a, dtype), _shifted(o.operands[1], b, dtype)).astype(np.int64)
    total = total * m
    total += c
    return requantize(o, total)


def _ilinear(o: Op, xs: Sequence[Array]) -> Array:
    c, *pairs = xs
    total = np.zeros(np.broadcast_shapes(*(x.shape for x in xs)), np.int64)
    total += c
    for x, m in zip(pairs[::2], pairs[1::2], strict=True):
        total += x * m.astype(np.int64)
    return requantize(o, total)


def _imul(o: Op, xs: Sequence[Array]) -> Array:
    a, b, m, c = xs
    acc = _shifted(o.operands[0], a, np.int64) * _shifted(o.operands[1], b, np.int64)
    return requantize(o, acc * m + c)


def _ilookup(o: Op, xs: Sequence[Array]) -> Array:
    """``table`` [256] for all, or [C, 256]: one row per index of axis 1."""
    x, table = xs
    index = x.astype(np.int32) - np.iinfo(x.dtype).min
    if table.ndim == 1:
        return np.take(table, index)
    channel = np.arange(table.shape[0]).reshape([-1 if a == 1 else 1 for a in range(x.ndim)])
    picked: Array = table[channel, index]
    return picked


def _isum_pool2d(o: Op, xs: Sequence[Array]) -> Array:
    x, m, c = xs
    total: Array | None = None
    for _, _, tap in Window.of(o).taps(_shifted(o.operands[0], x, np.int64)):
        total = tap.copy() if total is None else np.add(total, tap, out=total)
    if total is None:
        raise VerifyError(f"{o}: empty kernel")
    return requantize(o, total * m + c)


def _ireduce_sum(o: Op, xs: Sequence[Array]) -> Array:
    x, m, c = xs
    acc = _shifted(o.operands[0], x, np.int64).sum(axis=o.ints_attr("axes"), keepdims=o.bool_attr("keepdims"))
    return requantize(o, np.asarray(acc * m + c))


RESIZE_ONE: Final = 1 << 11
"""The weight one in the units of an ``iresize_linear``'s fractions."""


def _iresize_linear(o: Op, xs: Sequence[Array]) -> Array:
    """The sum of (x - zero point) * fh * fw over four neighbours; fh is 2**11 - hf at h0, hf at h1."""
    x, m, c = xs
    codes = _shifted(o.operands[0], x, np.int64)
    hf = np.array(o.ints_attr("hf"), np.int64).reshape(-1, 1)
    wf = np.array(o.ints_attr("wf"), np.int64)
    rows = codes[:, :, list(o.ints_attr("h0"))] * (RESIZE_ONE - hf) + codes[:, :, list(o.ints_attr("h1"))] * hf
    acc = rows[..., list(o.ints_attr("w0"))] * (RESIZE_ONE - wf) + rows[..., list(o.ints_attr("w1"))] * wf
    return requantize(o, acc * m + c)


def _isoftmax(o: Op, xs: Sequence[Array]) -> Array:
    x, table = xs
    axis = o.int_attr("axis")
    wide = x.astype(np.int32)
    e = table.astype(np.int64)[wide.max(axis=axis, keepdims=True) - wide]
    reciprocal = (1 << 40) // e.sum(axis=axis, keepdims=True)
    y = (e * reciprocal + (1 << 31)) >> 32
    codes: Array = np.minimum(y, 255).astype(np.uint8)
    return codes


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
