"""Folding of elementwise operations: arithmetic, comparison, choice, casts."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.dims import Dim, decide
from qcc.frontend.fold.base import Folder
from qcc.frontend.limits import Budget
from qcc.frontend.node import Node

Array = NDArray[Any]


def _operands(node: Node, budget: Budget, count: int | None = None) -> list[Array]:
    arrays = [node.known(i, "operand") for i in range(len(node.inputs) if count is None else count)]
    budget.claim(np.broadcast_shapes(*(a.shape for a in arrays)))
    return arrays


def _unary(function: Callable[[Array], Array]) -> Folder:
    def folder(node: Node, budget: Budget) -> list[Array]:
        (a,) = _operands(node, budget, 1)
        return [function(a)]

    return folder


def _binary(function: Callable[[Array, Array], Array]) -> Folder:
    def folder(node: Node, budget: Budget) -> list[Array]:
        a, b = _operands(node, budget, 2)
        return [function(a, b)]

    return folder


def _variadic(function: Callable[[Array, Array], Array]) -> Folder:
    def folder(node: Node, budget: Budget) -> list[Array]:
        return [reduce(function, _operands(node, budget))]

    return folder


def _comparison(compare: Callable[[Any, Any], Any]) -> Folder:
    def function(a: Array, b: Array) -> Array:
        if object in (a.dtype, b.dtype):
            decided = np.frompyfunc(lambda x, y: decide(compare, x, y), 2, 1)(a, b)
            return np.asarray(decided).astype(bool)
        return np.asarray(compare(a, b))

    return _binary(function)


def _divide(a: Array, b: Array) -> Array:
    """Integers divide towards zero; object arrays hold sizes, which are not negative."""
    if object in (a.dtype, b.dtype):
        return np.asarray(np.floor_divide(a, b))
    if a.dtype.kind in "iu":
        quotient = np.asarray(np.floor_divide(a, b))
        return quotient + ((quotient < 0) & (quotient * b != a)) if a.dtype.kind == "i" else quotient
    return np.asarray(np.divide(a, b))


def _power(a: Array, b: Array) -> Array:
    if a.dtype.kind in "iu":
        return np.power(a.astype(np.float64), b.astype(np.float64)).astype(a.dtype)
    return np.power(a, b.astype(np.float64)).astype(a.dtype)


def _modulo(node: Node, budget: Budget) -> list[Array]:
    a, b = _operands(node, budget, 2)
    return [np.asarray(np.fmod(a, b) if node.attr_int("fmod", 0) else np.mod(a, b))]


def _where(node: Node, budget: Budget) -> list[Array]:
    condition, a, b = _operands(node, budget, 3)
    return [np.where(condition.astype(bool), a, b)]


def _cast(node: Node, budget: Budget) -> list[Array]:
    (a,) = _operands(node, budget, 1)
    if node.op == "CastLike":
        like = node.known(1, "target type").dtype
        target = np.dtype(np.int64) if like.kind == "O" else like
    else:
        target = node.attr_dtype("to")
    if a.dtype != object:
        return [a.astype(target)]
    if target.kind == "b":
        return [np.vectorize(lambda e: decide(operator.ne, e, 0), otypes=[bool])(a)]
    convert = float if target.kind == "f" else math.trunc
    flat = np.empty(a.size, object)
    flat[:] = [e if isinstance(e, Dim) else convert(e) for e in a.flat]
    return [flat.reshape(a.shape)]


def _clip(node: Node, budget: Budget) -> list[Array]:
    (a,) = _operands(node, budget, 1)
    low = node.scalar(1, "min", node.attr_float("min", -math.inf))
    high = node.scalar(2, "max", node.attr_float("max", math.inf))
    return [np.minimum(np.maximum(a, low), high).astype(a.dtype)]


def _dequantize(node: Node, budget: Budget) -> list[Array]:
    """DequantizeLinear of stored weights: per tensor, or along ``axis``."""
    codes, scale = _operands(node, budget, 1)[0], node.known(1, "scale")
    zero = node.known(2, "zero point") if node.has(2) else np.zeros_like(scale, np.int32)
    if scale.ndim == 1 and scale.size > 1:
        axis = node.attr_int("axis", 1)
        shape = [1] * codes.ndim
        shape[axis] = scale.size
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    elif scale.size != 1:
        raise node.error(f"scales of shape {list(scale.shape)} are neither per tensor nor per axis")
    real = (codes.astype(np.int64) - zero.astype(np.int64)).astype(np.float32) * scale
    return [real.reshape(codes.shape)]


def _sigmoid(a: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-a)))


def _mean(node: Node, budget: Budget) -> list[Array]:
    arrays = _operands(node, budget)
    return [reduce(np.add, arrays) / np.float32(len(arrays))]


FOLDERS: Final[Mapping[str, Folder]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(_divide),
    "Pow": _binary(_power),
    "Mod": _modulo,
    "Sum": _variadic(np.add),
    "Min": _variadic(np.minimum),
    "Max": _variadic(np.maximum),
    "Mean": _mean,
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Round": _unary(np.rint),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(np.reciprocal),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sin": _unary(np.sin),
    "Cos": _unary(np.cos),
    "Tanh": _unary(np.tanh),
    "Sigmoid": _unary(_sigmoid),
    "Relu": _unary(lambda a: np.maximum(a, 0).astype(a.dtype)),
    "Clip": _clip,
    "Not": _unary(np.logical_not),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Xor": _binary(np.logical_xor),
    "Equal": _comparison(operator.eq),
    "Less": _comparison(operator.lt),
    "LessOrEqual": _comparison(operator.le),
    "Greater": _comparison(operator.gt),
    "GreaterOrEqual": _comparison(operator.ge),
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast,
    "DequantizeLinear": _dequantize,
}
