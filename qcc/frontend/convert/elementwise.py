"""Elementwise operations of two and more operands, and choice."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Final

import numpy as np

from qcc.frontend.convert.base import Converter
from qcc.frontend.emit import Emitter
from qcc.frontend.node import Known, Node, Tensor, UnsupportedNodeError
from qcc.ir.expr import Expr, X, call
from qcc.ir.graph import Value

_P0: Final = Expr("p0")


def _binary(kind: str) -> Converter:
    def convert(node: Node, emit: Emitter) -> Value:
        return emit.op(kind, emit.value(node.tensor(0)), emit.value(node.tensor(1)))

    return convert


def _sum(node: Node, emit: Emitter) -> Value:
    return reduce(lambda a, b: emit.op("add", a, b), _operands(node, emit))


def _mean(node: Node, emit: Emitter) -> Value:
    values = _operands(node, emit)
    total = reduce(lambda a, b: emit.op("add", a, b), values)
    share = emit.constant(np.array(1 / len(values), np.float32), f"{emit.stem}.share")
    return total if len(values) == 1 else emit.op("mul", total, share)


def _operands(node: Node, emit: Emitter) -> list[Value]:
    if not node.inputs:
        raise node.error("has no inputs")
    return [emit.value(node.tensor(i)) for i in range(len(node.inputs))]


def _extreme(low: bool) -> Converter:
    """Min (``low``) or Max: a clip against a scalar, a map against a constant, else a reduction."""

    def pair(node: Node, emit: Emitter, a: Tensor, b: Tensor) -> Tensor:
        if isinstance(a, Known):
            a, b = b, a
        x = emit.value(a)
        if isinstance(b, Known) and b.array.size == 1 and b.array.ndim <= x.type.rank:
            bound = float(b.array.reshape(())[()])
            return emit.op("clip", x, **{"hi" if low else "lo": bound})
        y = emit.value(b)
        if isinstance(b, Known) and emit.fits(x, y):
            return emit.map(call("min" if low else "max", X, _P0), x, y)
        return _stacked(node, emit, x, y, low)

    def convert(node: Node, emit: Emitter) -> Tensor:
        tensors = [node.tensor(i) for i in range(len(node.inputs))]
        if not tensors:
            raise node.error("has no inputs")
        tensors.sort(key=lambda t: isinstance(t, Known))
        return reduce(lambda a, b: pair(node, emit, a, b), tensors)

    return convert


def _stacked(node: Node, emit: Emitter, a: Value, b: Value, low: bool) -> Value:
    """The larger (or, through negation, smaller) of two tensors: a maximum over a new axis."""
    shape = a.type.shape
    if shape != b.type.shape or not shape:
        what = f"operands of shapes {list(shape)} and {list(b.type.shape)} computed at run time"
        raise UnsupportedNodeError(f"{what} cannot be compared", "give both the same shape")
    parts = [emit.map(call("neg", X), v) if low else v for v in (a, b)]
    parts = [emit.reshape(v, (shape[0], 1, *shape[1:])) for v in parts]
    top = emit.op("reduce_max", emit.op("concat", *parts, axis=1), axes=(1,), keepdims=False)
    return emit.map(call("neg", X), top) if low else top


def _pow(node: Node, emit: Emitter) -> Value:
    base, exponent = node.tensor(0), node.tensor(1)
    if isinstance(exponent, Known) and isinstance(base, Value):
        if exponent.array.size == 1 and exponent.array.ndim <= base.type.rank:
            power = float(exponent.array.reshape(())[()])
            return emit.map(call("mul", X, X) if power == 2 else call("pow", X, power), base)
        return emit.map(call("pow", X, _P0), base, emit.value(_float(exponent)))
    if isinstance(base, Known) and isinstance(exponent, Value):
        return emit.map(call("pow", _P0, X), exponent, emit.value(base))
    raise UnsupportedNodeError("base and exponent are both computed at run time", "make one of them a constant")


def _float(tensor: Known) -> Known:
    return Known(tensor.array.astype(np.float32), tensor.name) if tensor.array.dtype.kind in "iu" else tensor


def _prelu(node: Node, emit: Emitter) -> Value:
    x, slope = emit.value(node.tensor(0)), node.fixed(1, "slope")
    negative = call("less", X, 0.0)
    if slope.size == 1:
        return emit.map(call("where", negative, call("mul", X, float(slope.reshape(())[()])), X), x)
    return emit.map(call("where", negative, call("mul", X, _P0), X), x, emit.value(node.tensor(1)))


CONVERTERS: Final[Mapping[str, Converter]] = {
    "Add": _binary("add"),
    "Sub": _binary("sub"),
    "Mul": _binary("mul"),
    "Div": _binary("div"),
    "Sum": _sum,
    "Mean": _mean,
    "Min": _extreme(low=True),
    "Max": _extreme(low=False),
    "Pow": _pow,
    "PRelu": _prelu,
}
