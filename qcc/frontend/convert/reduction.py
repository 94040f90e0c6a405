"""Reductions, softmax and argmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcc.frontend.convert.base import Converter
from qcc.frontend.emit import Emitter
from qcc.frontend.forms import axes_of, axis_of
from qcc.frontend.limits import count
from qcc.frontend.node import FIX_BATCH, Node, UnsupportedNodeError
from qcc.ir.expr import X, call
from qcc.ir.graph import Value
from qcc.ir.types import BATCH

_Reduce = Callable[[Emitter, Value, tuple[int, ...], bool], Value]


def _plain(kind: str) -> _Reduce:
    return lambda emit, x, axes, keep: emit.op(kind, x, axes=axes, keepdims=keep)


def _min(emit: Emitter, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    top = emit.op("reduce_max", emit.map(call("neg", X), x), axes=axes, keepdims=keep)
    return emit.map(call("neg", X), top)


def _sum_square(emit: Emitter, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return emit.op("reduce_sum", emit.map(call("mul", X, X), x), axes=axes, keepdims=keep)


def _l1(emit: Emitter, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return emit.op("reduce_sum", emit.map(call("abs", X), x), axes=axes, keepdims=keep)


def _l2(emit: Emitter, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return emit.map(call("sqrt", X), _sum_square(emit, x, axes, keep))


def _log_sum(emit: Emitter, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    return emit.map(call("log", X), emit.op("reduce_sum", x, axes=axes, keepdims=keep))


def _log_sum_exp(emit: Emitter, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    """Relative to the maximum, so that no exponential overflows."""
    top = emit.op("reduce_max", x, axes=axes, keepdims=True)
    total = emit.op("reduce_sum", emit.map(call("exp", X), emit.op("sub", x, top)), axes=axes, keepdims=True)
    y = emit.op("add", emit.map(call("log", X), total), top)
    return y if keep else emit.reshape(y, tuple(d for a, d in enumerate(y.type.shape) if a not in axes))


def _reduction(reduce: _Reduce) -> Converter:
    def convert(node: Node, emit: Emitter) -> Value:
        x = emit.value(node.tensor(0))
        axes = axes_of(node, x.type.rank)
        if not axes and node.attr_int("noop_with_empty_axes", 0):
            return x
        over = tuple(sorted(axes or range(x.type.rank)))
        _keep_batch(x, over)
        return reduce(emit, x, over, bool(node.attr_int("keepdims", 1)))

    return convert


def _softmax(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    return _over_classes(node, emit, x, lambda v, axis: emit.op("softmax", v, axis=axis))


def _log_softmax(node: Node, emit: Emitter) -> Value:
    """Computes x - max - log(sum(exp(x - max))): every intermediate has a range that a grid can hold."""

    def log_softmax(v: Value, axis: int) -> Value:
        below = emit.op("sub", v, emit.op("reduce_max", v, axes=(axis,), keepdims=True))
        total = emit.op("reduce_sum", emit.map(call("exp", X), below), axes=(axis,), keepdims=True)
        return emit.op("sub", below, emit.map(call("log", X), total))

    return _over_classes(node, emit, emit.value(node.tensor(0)), log_softmax)


def _over_classes(node: Node, emit: Emitter, x: Value, function: Callable[[Value, int], Value]) -> Value:
    """``function`` over the node's axis; before opset 13 over all axes from that one on, as one."""
    old = node.opset < 13
    axis = axis_of(node, node.attr_int("axis", 1 if old else -1), x.type.rank)
    _keep_batch(x, (axis,))
    shape = x.type.shape
    if not old or axis == x.type.rank - 1 or count(shape[axis:]) == shape[axis]:
        return function(x, axis)
    flat = emit.reshape(x, (*shape[:axis], count(shape[axis:])))
    return emit.reshape(function(flat, axis), shape)


def _argmax(negate: bool) -> Converter:
    def convert(node: Node, emit: Emitter) -> Value:
        x = emit.value(node.tensor(0))
        axis = axis_of(node, node.attr_int("axis", 0), x.type.rank)
        _keep_batch(x, (axis,))
        if node.attr_int("select_last_index", 0):
            raise UnsupportedNodeError("select_last_index is not supported", "take the first index")
        x = emit.map(call("neg", X), x) if negate else x
        return emit.op("argmax", x, axis=axis, keepdims=bool(node.attr_int("keepdims", 1)))

    return convert


def _keep_batch(x: Value, axes: tuple[int, ...]) -> None:
    if 0 in axes and x.type.shape[:1] == (BATCH,):
        raise UnsupportedNodeError("it reduces over the batch", FIX_BATCH)


CONVERTERS: Final[Mapping[str, Converter]] = {
    "ReduceMean": _reduction(_plain("reduce_mean")),
    "ReduceSum": _reduction(_plain("reduce_sum")),
    "ReduceMax": _reduction(_plain("reduce_max")),
    "ReduceMin": _reduction(_min),
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _reduction(_l2),
    "ReduceSumSquare": _reduction(_sum_square),
    "ReduceLogSum": _reduction(_log_sum),
    "ReduceLogSumExp": _reduction(_log_sum_exp),
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "ArgMax": _argmax(negate=False),
    "ArgMin": _argmax(negate=True),
}
