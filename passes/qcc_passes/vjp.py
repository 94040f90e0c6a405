"""Vector-Jacobian products of the real operations; ``qcc_passes.backward`` chains them over a graph.

Each rule is checked against finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir import expr
from qcc.ir.graph import Op
from qcc_passes import vjp_conv

Array = NDArray[Any]
Rule = Callable[[Op, Sequence[Array], Array, Array], Sequence[Array | None]]
"""``rule(op, operands, result, cotangent)`` gives the operands' cotangents; None where there is none."""

_STEP = 1e-5


def vjp(o: Op, operands: Sequence[Array], result: Array, cotangent: Array) -> Sequence[Array | None]:
    """Cotangents of the operands of one operation. Raises PassError where there is no derivative."""
    return unclamped_vjp(o, operands, result, unclamped(o, result, cotangent))


def unclamped_vjp(o: Op, operands: Sequence[Array], result: Array, cotangent: Array) -> Sequence[Array | None]:
    """``vjp`` from the cotangent before the clamp that ``o`` ends in (see ``unclamped``)."""
    rule = _RULES.get(o.kind)
    if rule is None:
        raise PassError(f"{o}: '{o.kind}' has no derivative; end the graph before it, or choose a forward-only method")
    return rule(o, operands, result, cotangent)


def unclamped(o: Op, result: Array, cotangent: Array) -> Array:
    """The cotangent before the clamp that ``o`` ends in: zero where it holds ``result`` at a bound."""
    # The executor clamps to float32 bounds: compare with those, or a clamped value seems inside.
    inside = [result > np.float32(o.float_attr("lo"))] if "lo" in o.attrs else []
    inside += [result < np.float32(o.float_attr("hi"))] if "hi" in o.attrs else []
    for mask in inside:
        cotangent = cotangent * mask
    return cotangent


def _unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``grad`` down to ``shape``: the adjoint of numpy's broadcasting."""
    grad = grad.sum(axis=tuple(range(grad.ndim - len(shape))))
    axes = tuple(a for a, d in enumerate(shape) if d == 1 and grad.shape[a] != 1)
    summed: Array = grad.sum(axis=axes, keepdims=True)
    return summed


def _conv2d(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (*vjp_conv.conv2d(o, xs[0], xs[1], g), *([g] if len(xs) == 4 else []))


def _dense(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    x, w = xs[0], xs[1]
    flat = g.reshape(-1, g.shape[-1])
    dw = flat.T @ x.reshape(-1, x.shape[-1])
    return (g @ w, dw, flat.sum(axis=0), *([g] if len(xs) == 4 else []))


def _matmul(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    a, b = xs
    return _unbroadcast(g @ b.swapaxes(-1, -2), a.shape), _unbroadcast(a.swapaxes(-1, -2) @ g, b.shape)


def _add(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return [_unbroadcast(g, x.shape) for x in xs]


def _sub(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return _unbroadcast(g, xs[0].shape), _unbroadcast(-g, xs[1].shape)


def _mul(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return _unbroadcast(g * xs[1], xs[0].shape), _unbroadcast(g * xs[0], xs[1].shape)


def _clip(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (g,)


def _map(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    """Central differences in float64: good to about 1e-9 wherever the function is smooth."""
    tree = expr.parse(o.str_attr("fn"))
    env: dict[str, Array] = {f"p{i}": p for i, p in enumerate(xs[1:])}
    x = xs[0].astype(np.float64)
    step = _STEP * np.maximum(1.0, np.abs(x))
    above, below = (expr.evaluate(tree, {**env, "x": x + d}) for d in (step, -step))
    return ((g * (above - below) / (2 * step)).astype(g.dtype), *([None] * (len(xs) - 1)))


def _spread(o: Op, x: Array, g: Array) -> Array:
    """A reduction's cotangent, broadcast back over the reduced axes."""
    axes = o.ints_attr("axes")
    kept = g if o.bool_attr("keepdims") else np.expand_dims(g, axes)
    return np.broadcast_to(kept, x.shape)


def _reduce_sum(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (_spread(o, xs[0], g).copy(),)


def _reduce_mean(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (_spread(o, xs[0], g) * (y.size / xs[0].size),)


def _reduce_max(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    hit = xs[0] == _spread(o, xs[0], y)
    return (np.where(hit, _spread(o, xs[0], g), 0) / hit.sum(axis=o.ints_attr("axes"), keepdims=True),)


def _concat(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    axis = o.int_attr("axis")
    return np.split(g, np.cumsum([x.shape[axis] for x in xs])[:-1], axis)


def _slice(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    dx = np.zeros(xs[0].shape, g.dtype)
    axis = o.int_attr("axis")
    window = slice(o.int_attr("start"), o.int_attr("stop"), o.int_attr("step"))
    dx[(slice(None),) * axis + (window,)] = g
    return (dx,)


def _gather(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    dx = np.zeros(xs[0].shape, g.dtype)
    axis = o.int_attr("axis")
    moved = np.moveaxis(dx, axis, 0)
    np.add.at(moved, np.array(o.ints_attr("indices")), np.moveaxis(g, axis, 0))
    return (dx,)


def _pad(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    pads = o.ints_attr("pads")
    return (g[tuple(slice(p, p + d) for p, d in zip(pads, xs[0].shape, strict=False))],)


def _reshape(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (g.reshape(xs[0].shape),)


def _transpose(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (g.transpose(np.argsort(o.ints_attr("perm"))),)


def _dilate2d(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    fh, fw = o.ints_attr("factors")
    return (g[:, :, ::fh, ::fw],)


def _resize_linear(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    rows, cols = (_interpolation(o, a, n) for a, n in zip("hw", xs[0].shape[2:], strict=True))
    return ((rows.T @ g @ cols).astype(g.dtype),)


def _interpolation(o: Op, axis: str, size: int) -> Array:
    """The interpolation along one axis as a matrix [out, in]: 1 - f at the low, f at the high neighbour."""
    low, high, frac = o.ints_attr(f"{axis}0"), o.ints_attr(f"{axis}1"), np.array(o.floats_attr(f"{axis}f"))
    unit: Array = np.eye(size)
    matrix: Array = unit[list(low)] * (1 - frac)[:, None] + unit[list(high)] * frac[:, None]
    return matrix


def _softmax(o: Op, xs: Sequence[Array], y: Array, g: Array) -> Sequence[Array | None]:
    return (y * (g - (g * y).sum(axis=o.int_attr("axis"), keepdims=True)),)


_RULES: Final[Mapping[str, Rule]] = {
    "conv2d": _conv2d,
    "dense": _dense,
    "matmul": _matmul,
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "clip": _clip,
    "map": _map,
    "max_pool2d": lambda o, xs, y, g: (vjp_conv.max_pool2d(o, xs[0], y, g),),
    "avg_pool2d": lambda o, xs, y, g: (vjp_conv.avg_pool2d(o, xs[0], g),),
    "reduce_sum": _reduce_sum,
    "reduce_mean": _reduce_mean,
    "reduce_max": _reduce_max,
    "concat": _concat,
    "slice": _slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "dilate2d": _dilate2d,
    "resize_linear": _resize_linear,
    "softmax": _softmax,
}
