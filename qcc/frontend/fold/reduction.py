"""Folding of reductions and matrix products."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.fold.base import Folder
from qcc.frontend.forms import axes_of
from qcc.frontend.limits import Budget
from qcc.frontend.node import Node

Array = NDArray[Any]


def _reduction(function: Callable[..., Any]) -> Folder:
    """``function(array, axis=…, keepdims=…)`` over the axes that the node names."""

    def folder(node: Node, budget: Budget) -> list[Array]:
        data = node.known(0, "data")
        axes = axes_of(node, data.ndim)
        if not axes and node.attr_int("noop_with_empty_axes", 0):
            return [data]
        over = tuple(axes or range(data.ndim))
        result = np.asarray(function(data, axis=over, keepdims=bool(node.attr_int("keepdims", 1))))
        return [result if data.dtype == object else result.astype(data.dtype)]

    return folder


def _product(data: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    """Element by element, for object arrays (sizes that depend on the batch) know no other way."""
    reduced: Array = np.multiply.reduce(data, axis=axis, keepdims=keepdims)  # type: ignore[call-overload]
    return reduced


def _sum(data: Array, axis: tuple[int, ...], keepdims: bool) -> Array:
    reduced: Array = np.add.reduce(data, axis=axis, keepdims=keepdims)  # type: ignore[call-overload]
    return reduced


def _extreme(function: Callable[..., Any]) -> Folder:
    """ArgMax or ArgMin: the first index, or the last."""

    def folder(node: Node, budget: Budget) -> list[Array]:
        data = node.fixed(0, "data")
        axis, keep = node.attr_int("axis", 0), bool(node.attr_int("keepdims", 1))
        if node.attr_int("select_last_index", 0):
            last = data.shape[axis] - 1 - function(np.flip(data, axis), axis=axis, keepdims=keep)
            return [np.asarray(last)]
        return [np.asarray(function(data, axis=axis, keepdims=keep))]

    return folder


def _matmul(node: Node, budget: Budget) -> list[Array]:
    a, b = node.fixed(0, "operand"), node.fixed(1, "operand")
    if a.ndim == 0 or b.ndim == 0:
        raise node.error("takes no scalars")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns = math.prod(a.shape[-2:-1]), math.prod(b.shape[-1:] if b.ndim > 1 else ())
    budget.claim((*batch, rows, columns))
    budget.multiply(math.prod((*batch, rows, columns, a.shape[-1])))
    return [np.matmul(a, b)]


def _cumulative_sum(node: Node, budget: Budget) -> list[Array]:
    data, axis = node.fixed(0, "data"), int(node.scalar(1, "axis", 0))
    reverse = bool(node.attr_int("reverse", 0))
    data = np.flip(data, axis) if reverse else data
    total = np.cumsum(data, axis, dtype=data.dtype)
    if node.attr_int("exclusive", 0):
        total = total - data
    return [np.flip(total, axis) if reverse else total]


FOLDERS: Final[Mapping[str, Folder]] = {
    "ReduceSum": _reduction(_sum),
    "ReduceProd": _reduction(_product),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "ReduceMean": _reduction(np.mean),
    "ArgMax": _extreme(np.argmax),
    "ArgMin": _extreme(np.argmin),
    "MatMul": _matmul,
    "CumSum": _cumulative_sum,
}
