"""Real operations of stages FLOAT and QUANTIZED, computed in float32 (maps and means in float64).

Operands in float64 give float64 results: differentiation is checked in double precision.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir import expr
from qcc.ir.graph import Op
from qcc.verify.interp_move import Rule, dilate
from qcc.verify.windows import Window, convolve

Array = NDArray[Any]


def _clamp(o: Op, real: Array) -> Array:
    lo, hi = o.float_attr("lo", -np.inf), o.float_attr("hi", np.inf)
    if lo == -np.inf and hi == np.inf:
        return real
    return np.clip(real, np.float32(lo), np.float32(hi))


def _per_channel(vector: Array) -> Array:
    return vector.reshape(-1, 1, 1)


def _conv2d(o: Op, xs: Sequence[Array]) -> Array:
    x, w, b, *r = xs
    y = convolve(x, w, Window.of(o), o.int_attr("groups"))
    y += _per_channel(b)
    for residual in r:
        y += residual
    return _clamp(o, y)


def _conv_transpose2d(o: Op, xs: Sequence[Array]) -> Array:
    """The gradient of conv2d: correlate the dilated map with flipped weights [C, O/g, kh, kw]."""
    x, w, b = xs
    groups, per_group = o.int_attr("groups"), w.shape[1]
    (kh, kw), (dh, dw) = w.shape[2:], o.ints_attr("dilations")
    (eh, ew), (top, left, bottom, right) = o.ints_attr("output_padding"), o.ints_attr("pads")
    flipped = w[:, :, ::-1, ::-1].reshape(groups, -1, per_group, kh, kw).swapaxes(1, 2)
    kernel = flipped.reshape(groups * per_group, -1, kh, kw)
    reach_h, reach_w = dh * (kh - 1), dw * (kw - 1)
    full = Window((kh, kw), (1, 1), (reach_h, reach_w, reach_h + eh, reach_w + ew), (dh, dw))
    y = convolve(dilate(x, o.ints_attr("strides"), 0), kernel, full, groups)
    y = y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]
    return y + _per_channel(b)


def _dense(o: Op, xs: Sequence[Array]) -> Array:
    x, w, b, *r = xs
    y = np.matmul(x, w.T) + b
    for residual in r:
        y += residual
    return _clamp(o, y)


def _matmul(o: Op, xs: Sequence[Array]) -> Array:
    product: Array = np.matmul(xs[0], xs[1])
    return product


def _add(o: Op, xs: Sequence[Array]) -> Array:
    return _clamp(o, xs[0] + xs[1])


def _sub(o: Op, xs: Sequence[Array]) -> Array:
    return _clamp(o, xs[0] - xs[1])


def _mul(o: Op, xs: Sequence[Array]) -> Array:
    return _clamp(o, xs[0] * xs[1])


def _div(o: Op, xs: Sequence[Array]) -> Array:
    with np.errstate(all="ignore"):
        quotient: Array = xs[0] / xs[1]
    return quotient


def _clip(o: Op, xs: Sequence[Array]) -> Array:
    return _clamp(o, xs[0])


def _map(o: Op, xs: Sequence[Array]) -> Array:
    x, *parameters = xs
    env = {"x": x} | {f"p{i}": p for i, p in enumerate(parameters)}
    with np.errstate(over="ignore"):
        result = expr.evaluate(expr.parse(o.str_attr("fn")), env).astype(x.dtype)
    return np.broadcast_to(result, x.shape)


def _avg_pool2d(o: Op, xs: Sequence[Array]) -> Array:
    (x,) = xs
    total = sum(tap.astype(np.float64) for _, _, tap in Window.of(o).taps(x))
    return _clamp(o, (total / averaged(o, *x.shape[2:])).astype(x.dtype))


def averaged(o: Op, height: int, width: int) -> Array:
    """How many elements each window of an ``avg_pool2d`` averages over: [rows, cols], float64.

    With ``count_include_pad`` the explicit padding counts; what ceil mode adds never does.
    """
    ones = np.ones((1, 1, height, width))
    if o.bool_attr("count_include_pad"):
        top, left, bottom, right = o.ints_attr("pads")
        ones = np.ones((1, 1, height + top + bottom, width + left + right))
        below, beyond = o.ints_attr("ceil_pads")
        whole = Window.of(o)
        window = Window(whole.kernel, whole.strides, (0, 0, below, beyond), whole.dilations)
    else:
        window = Window.of(o)
    counts: Array = np.sum([tap[0, 0] for _, _, tap in window.taps(ones)], axis=0)
    return np.maximum(counts, 1)


def _reduce_mean(o: Op, xs: Sequence[Array]) -> Array:
    mean = np.mean(xs[0], axis=o.ints_attr("axes"), keepdims=o.bool_attr("keepdims"), dtype=np.float64)
    return _clamp(o, np.asarray(mean).astype(xs[0].dtype))


def _reduce_sum(o: Op, xs: Sequence[Array]) -> Array:
    total = np.sum(xs[0], axis=o.ints_attr("axes"), keepdims=o.bool_attr("keepdims"), dtype=np.float64)
    return _clamp(o, np.asarray(total).astype(xs[0].dtype))


def _resize_linear(o: Op, xs: Sequence[Array]) -> Array:
    """Rows blend h0 and h1 by 1 - hf and hf, columns likewise."""
    (x,) = xs
    hf = np.array(o.floats_attr("hf"), x.dtype).reshape(-1, 1)
    wf = np.array(o.floats_attr("wf"), x.dtype)
    rows = x[:, :, list(o.ints_attr("h0"))] * (1 - hf) + x[:, :, list(o.ints_attr("h1"))] * hf
    blend = rows[..., list(o.ints_attr("w0"))] * (1 - wf) + rows[..., list(o.ints_attr("w1"))] * wf
    return _clamp(o, blend)


def _softmax(o: Op, xs: Sequence[Array]) -> Array:
    axis = o.int_attr("axis")
    x = xs[0].astype(np.float64)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    result: Array = (e / e.sum(axis=axis, keepdims=True)).astype(xs[0].dtype)
    return result


def _batch_norm(o: Op, xs: Sequence[Array]) -> Array:
    x, scale, bias, mean, var = xs
    factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + o.float_attr("epsilon"))
    offset = bias - mean * factor
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    result: Array = (x * factor.reshape(shape) + offset.reshape(shape)).astype(np.float32)
    return result


REAL: Final[Mapping[str, Rule]] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "dense": _dense,
    "matmul": _matmul,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "clip": _clip,
    "map": _map,
    "avg_pool2d": _avg_pool2d,
    "reduce_mean": _reduce_mean,
    "reduce_sum": _reduce_sum,
    "resize_linear": _resize_linear,
    "softmax": _softmax,
    "batch_norm": _batch_norm,
}
