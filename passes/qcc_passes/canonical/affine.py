"""Per-channel affine steps y = a·x + t: read off operations, and folded into the weights beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.expr import Expr
from qcc.ir.expr import parse as parse_expr
from qcc.ir.graph import Attr, Op, Value, constant, op
from qcc_passes.canonical.engine import Answer, Rule, Scope, infer, on

Array = NDArray[np.float64]
CLAMP: Final = ("lo", "hi")
_ZERO: Final = np.zeros(())
_ONE: Final = np.ones(())


@dataclass(frozen=True, slots=True)
class Affine:
    """``scale * x + offset``, both float64 and broadcasting against ``x``."""

    x: Value
    scale: Array
    offset: Array

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.scale == 1) and not np.any(self.offset))


def affine_of(o: Op, scope: Scope) -> Affine | None:
    """The affine step that ``o`` takes before its clamp, or None where it is something else.

    ``o`` must keep the shape of its variable operand.
    """
    if o.result.type.dtype != "f32":
        return None
    if o.kind == "batch_norm":
        return _batch_norm(o, scope)
    if o.kind == "map":
        return _affine_map(o, scope)
    if o.kind not in ("add", "sub", "mul", "div"):
        return None
    a, b = o.operands
    if a.name == b.name:
        found = Affine(a, _ONE * 2, _ZERO) if o.kind == "add" else None
    elif (value := scope.constant(b)) is not None:
        found = _constant_right(o.kind, a, value.astype(np.float64))
    elif (value := scope.constant(a)) is not None:
        found = _constant_left(o.kind, value.astype(np.float64), b)
    else:
        found = None
    return found if found is not None and found.x.type.shape == o.result.type.shape else None


def _constant_right(kind: str, x: Value, c: Array) -> Affine | None:
    if kind == "mul":
        return Affine(x, c, _ZERO)
    if kind == "div":
        return Affine(x, 1 / c, _ZERO) if np.all(c) else None
    return Affine(x, _ONE, c if kind == "add" else -c)


def _constant_left(kind: str, c: Array, x: Value) -> Affine | None:
    if kind == "mul":
        return Affine(x, c, _ZERO)
    return None if kind == "div" else Affine(x, _ONE if kind == "add" else -_ONE, c)


def _batch_norm(o: Op, scope: Scope) -> Affine | None:
    params = [scope.constant(v) for v in o.operands[1:]]
    if any(p is None for p in params):
        return None
    gamma, beta, mean, var = (np.asarray(p, np.float64) for p in params)
    spread = var + o.float_attr("epsilon")
    if not np.all(spread > 0):
        return None
    scale = gamma / np.sqrt(spread)
    tail = (-1,) + (1,) * (o.result.type.rank - 2)
    return Affine(o.operands[0], scale.reshape(tail), (beta - mean * scale).reshape(tail))


def _affine_map(o: Op, scope: Scope) -> Affine | None:
    env: dict[str, Array] = {}
    for i, v in enumerate(o.operands[1:]):
        value = scope.constant(v)
        if value is None:
            return None
        env[f"p{i}"] = value.astype(np.float64)
    terms = _terms(parse_expr(o.str_attr("fn")), env)
    return None if terms is None else Affine(o.operands[0], *terms)


def _terms(e: Expr, env: dict[str, Array]) -> tuple[Array, Array] | None:
    """(a, t) with e = a·x + t, or None where ``e`` is not written as an affine function of x."""
    if isinstance(e.head, float):
        return _ZERO, np.array(e.head)
    if not e.args:
        return (_ONE, _ZERO) if e.head == "x" else (_ZERO, env[e.head])
    parts = [_terms(arg, env) for arg in e.args]
    if e.head not in ("add", "sub", "neg", "mul", "div") or any(p is None for p in parts):
        return None
    (a, t), *rest = (p for p in parts if p is not None)
    if e.head == "neg":
        return -a, -t
    ((b, u),) = rest
    if e.head == "add":
        return a + b, t + u
    if e.head == "sub":
        return a - b, t - u
    if e.head == "mul" and not np.any(a):
        return t * b, t * u
    if np.any(b) or (e.head == "div" and not np.all(u)):
        return None
    return (a * u, t * u) if e.head == "mul" else (a / u, t / u)


def per_channel(values: NDArray[Any], rank: int, axis: int, channels: int) -> Array | None:
    """``values`` as a vector [channels], where they vary along ``axis`` of a rank-``rank`` tensor alone."""
    shape = (1,) * (rank - values.ndim) + values.shape
    if values.ndim > rank or any(d != 1 for a, d in enumerate(shape) if a != axis):
        return None
    return np.broadcast_to(values.astype(np.float64).reshape(-1), (channels,))


def channel_axis(linear: Op) -> int:
    """The channel axis of what a conv2d or dense reads and writes."""
    return 1 if linear.kind == "conv2d" else linear.result.type.rank - 1


def clamp_of(o: Op) -> dict[str, Attr]:
    return {k: o.attrs[k] for k in CLAMP if k in o.attrs}


def relinear(linear: Op, result: Value, w: Array, b: Array, scope: Scope, **attrs: Attr) -> Sequence[Op]:
    """``linear`` (conv2d or dense) with other weights, bias and result; float64 arrays become f32.

    ``attrs`` are added to the attributes of ``linear``.
    """
    x, old_w, old_b, *residual = linear.operands
    new_w = constant(scope.fresh(old_w.name), w.astype(np.float32))
    new_b = constant(scope.fresh(old_b.name), b.astype(np.float32))
    operands = (x, new_w.result, new_b.result, *residual)
    return new_w, new_b, op(linear.kind, operands, (result,), **{**linear.attrs, **attrs})


def weights(linear: Op, scope: Scope) -> tuple[Array, Array] | None:
    """Weights and bias of a conv2d or dense in float64, or None where they are not constants."""
    w, b = (scope.constant(v) for v in linear.operands[1:3])
    return None if w is None or b is None else (w.astype(np.float64), b.astype(np.float64))


def _columns(w: Array, factors: Array, groups: int) -> Array:
    """``factors`` per input channel, shaped to multiply weights [O, C/groups, ...]."""
    rows = np.repeat(factors.reshape(groups, -1), w.shape[0] // groups, axis=0)
    return rows.reshape(rows.shape + (1,) * (w.ndim - 2))


@on("add", "sub", "mul", "div", "map", "batch_norm")
def fold_affine_into_producer(o: Op, scope: Scope) -> Answer:
    """a·conv(x) + t: into the weights and the bias of the convolution, when nobody else reads it."""
    step = affine_of(o, scope)
    if step is None or scope.producer(step.x, "conv2d", "dense") is None:
        return None
    linear = scope.sole_producer(step.x, "conv2d", "dense")
    if linear is None:
        return scope.keep(o, f"%{step.x.name} has other users")
    if clamp_of(linear):
        return scope.keep(o, f"{linear} clamps its result")
    if len(linear.operands) == 4 and not np.all(step.scale == 1):
        return scope.keep(o, f"{linear} adds a residual, which would need the scale too")
    folded = fold_after(linear, o.result, step, scope, **clamp_of(o))
    return folded or scope.keep(o, f"its constants do not vary per channel of {linear} alone, or the weights vary")


def fold_after(linear: Op, result: Value, step: Affine, scope: Scope, **clamp: Attr) -> Sequence[Op] | None:
    """``step`` applied to the result of ``linear``, as one operation that defines ``result``."""
    known = weights(linear, scope)
    if known is None:
        return None
    w, b = known
    rank, axis = linear.result.type.rank, channel_axis(linear)
    a = per_channel(step.scale, rank, axis, len(b))
    t = per_channel(step.offset, rank, axis, len(b))
    if a is None or t is None:
        return None
    return relinear(linear, result, w * a.reshape((-1,) + (1,) * (w.ndim - 1)), b * a + t, scope, **clamp)


@on("conv2d", "dense")
def fold_affine_before(o: Op, scope: Scope) -> Answer:
    """conv(a·x + t): into weights and bias; with t ≠ 0 only where the convolution does not pad."""
    return absorb(o, scope, "add", "sub", "mul", "div", "map", "batch_norm")


def absorb(o: Op, scope: Scope, *kinds: str) -> Answer:
    """``o`` (conv2d or dense) with an affine step of one of ``kinds`` before it folded in, if it can be."""
    source = scope.producer(o.operands[0], *kinds)
    if source is None or clamp_of(source) or (step := affine_of(source, scope)) is None:
        return None
    earlier = scope.sole_producer(step.x, "conv2d", "dense")
    if earlier is not None and not clamp_of(earlier) and len(earlier.operands) == 3:
        return scope.keep(o, f"{source} folds into {earlier} instead")
    readers = scope.users(source.result)
    if scope.is_output(source.result) or any(not can_absorb(u, source.result, step, scope) for u in readers):
        return scope.keep(o, f"{source} has users that cannot absorb it, or is padded with zeros after it")
    return fold_before(o, step, scope)


def can_absorb(linear: Op, value: Value, step: Affine, scope: Scope) -> bool:
    """Whether ``fold_before`` is exact for ``step``, whose result ``value`` feeds ``linear``.

    The constants must vary per channel alone, and no zero padding may follow a nonzero offset.
    """
    if linear.kind not in ("conv2d", "dense") or weights(linear, scope) is None:
        return False
    if any(v.name == value.name for v in linear.operands[1:]):
        return False
    padded = linear.kind == "conv2d" and any(linear.ints_attr("pads"))
    return _input_channels(linear, step) is not None and not (padded and np.any(step.offset))


def _input_channels(linear: Op, step: Affine) -> tuple[Array, Array] | None:
    shape = step.x.type.shape
    axis = channel_axis(linear)
    a = per_channel(step.scale, len(shape), axis, shape[axis])
    t = per_channel(step.offset, len(shape), axis, shape[axis])
    return None if a is None or t is None else (a, t)


def fold_before(linear: Op, step: Affine, scope: Scope) -> Sequence[Op] | None:
    """``linear`` on ``step.x`` instead of on ``step``'s result; the caller has asked ``can_absorb``."""
    channels, known = _input_channels(linear, step), weights(linear, scope)
    if channels is None or known is None:
        return None
    (a, t), (w, b) = channels, known
    groups = linear.int_attr("groups") if linear.kind == "conv2d" else 1
    bias = b + (w * _columns(w, t, groups)).reshape(len(w), -1).sum(axis=1)
    moved = op(linear.kind, (step.x, *linear.operands[1:]), linear.results, **linear.attrs)
    return relinear(moved, linear.result, w * _columns(w, a, groups), bias, scope)


@on("dense")
def fold_affine_before_flatten(o: Op, scope: Scope) -> Answer:
    """dense(flatten(a·x + t)): into the columns and the bias, whatever a and t vary along."""
    reshape = scope.sole_producer(o.operands[0], "reshape")
    source = None if reshape is None else scope.sole_producer(reshape.operands[0], "add", "sub", "mul", "div", "map")
    if reshape is None or source is None or clamp_of(source) or (known := weights(o, scope)) is None:
        return None
    step = affine_of(source, scope)
    inner, outer = source.result.type.shape, o.operands[0].type.shape
    if step is None or len(outer) != 2 or inner[0] != outer[0]:
        return None
    a, t = (_flattened(values, inner) for values in (step.scale, step.offset))
    if a is None or t is None:
        return scope.keep(o, f"the constants of {source} vary along the batch")
    flat = infer("reshape", (step.x,), scope.fresh(step.x.name), shape=outer)
    moved = op("dense", (flat.result, *o.operands[1:]), o.results, **o.attrs)
    w, b = known
    return [flat, *relinear(moved, o.result, w * a, b + w @ t, scope)]


def _flattened(values: Array, shape: tuple[int, ...]) -> Array | None:
    """``values`` per element of a sample of a tensor of ``shape``, as a vector; None where samples differ."""
    full = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    return np.broadcast_to(full[0], shape[1:]).reshape(-1) if full.shape[0] == 1 else None


@on("add", "sub", "mul", "div", "map")
def drop_identity_step(o: Op, scope: Scope) -> Answer:
    """Additions of 0, multiplications by 1 and their like."""
    step = affine_of(o, scope)
    if step is None or clamp_of(o) or not step.is_identity:
        return None
    return step.x if step.x.type == o.result.type else None


RULES: Final[tuple[Rule, ...]] = (
    drop_identity_step,
    fold_affine_into_producer,
    fold_affine_before,
    fold_affine_before_flatten,
)
