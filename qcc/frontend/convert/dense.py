"""Matrix products: ``dense`` where one side is a constant matrix, else ``matmul``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.convert.base import Converter
from qcc.frontend.emit import Emitter
from qcc.frontend.node import FIX_BATCH, Known, Node, Tensor, UnsupportedNodeError
from qcc.ir.graph import Value
from qcc.ir.types import BATCH


def _gemm(node: Node, emit: Emitter) -> Value:
    """Computes alpha * A' * B' + beta * C; alpha goes into constant weights, beta into a constant C."""
    a, b = node.tensor(0), node.tensor(1)
    alpha, beta = node.attr_float("alpha", 1.0), node.attr_float("beta", 1.0)
    left = emit.value(a)
    if left.type.rank != 2:
        raise node.error(f"takes matrices, its first input has shape {list(left.type.shape)}")
    left = emit.transpose(left, (1, 0)) if node.attr_int("transA", 0) else left
    turned = bool(node.attr_int("transB", 0))
    if isinstance(b, Known):
        weights = _matrix(node, b.array)
        rows = weights if turned else weights.T
        addend = node.tensor(2) if node.has(2) else None
        bias = _gemm_bias(node, addend, beta, rows.shape[0])
        y = _dense(emit, left, _scaled(rows, alpha), b.name, bias)
        return y if addend is None or bias is not None else _plus(emit, y, addend, beta)
    right = emit.transpose(emit.value(b), (1, 0)) if turned else emit.value(b)
    y = _times(emit, emit.op("matmul", left, right), alpha)
    return _plus(emit, y, node.tensor(2), beta) if node.has(2) else y


def _gemm_bias(node: Node, addend: Tensor | None, beta: float, columns: int) -> NDArray[Any] | None:
    """C as one number per column, if it is that."""
    if not isinstance(addend, Known):
        return None
    array = node.fixed(2, "addend")
    if array.ndim > 2 or (array.ndim == 2 and array.shape[0] != 1) or array.shape[-1:] not in ((), (1,), (columns,)):
        return None
    return _scaled(np.broadcast_to(array.reshape(-1), (columns,)), beta)


def _plus(emit: Emitter, y: Value, addend: Tensor, beta: float) -> Value:
    return emit.op("add", y, _times(emit, emit.value(addend), beta))


def _times(emit: Emitter, x: Value, factor: float) -> Value:
    return x if factor == 1 else emit.op("mul", x, emit.constant(np.array(factor, np.float32), f"{emit.stem}.factor"))


def _matmul(node: Node, emit: Emitter) -> Value:
    a, b = node.tensor(0), node.tensor(1)
    if isinstance(b, Known) and (rows := _as_matrix(b.array)) is not None and not isinstance(a, Known):
        return _dense_right(emit, a, b, rows.T)
    if isinstance(a, Known) and (rows := _as_matrix(a.array)) is not None and _is_stack(b):
        return _dense_left(emit, a, rows, b)
    left, right = emit.value(a), emit.value(b)
    if left.type.rank >= 2 and right.type.rank >= 2:
        return emit.op("matmul", left, right)
    return _matmul_vectors(node, emit, left, right)


def _is_stack(b: Tensor) -> TypeGuard[Value]:
    """Whether the last two axes of a runtime operand can be swapped: neither is the batch."""
    return isinstance(b, Value) and b.type.rank >= 2 and BATCH not in b.type.shape[-2:]


def _as_matrix(array: NDArray[Any]) -> NDArray[Any] | None:
    """A constant factor as one matrix: a vector is a column, leading axes of size 1 do not count."""
    if array.dtype != np.float32 or array.ndim == 0:
        return None
    if array.ndim == 1:
        return array.reshape(-1, 1)
    return array.reshape(array.shape[-2:]) if math.prod(array.shape[:-2]) == 1 else None


def _dense_right(emit: Emitter, x: Value, factor: Known, rows: NDArray[Any]) -> Value:
    """Computes x @ factor; ``rows`` is the factor transposed."""
    vector = x.type.rank == 1
    if vector and x.type.shape[0] == BATCH:
        raise UnsupportedNodeError("it contracts the batch", FIX_BATCH)
    y = _dense(emit, emit.reshape(x, (1, *x.type.shape)) if vector else x, rows, factor.name, None)
    shape = y.type.shape[:-2] if vector else y.type.shape[:-1]
    shape = shape if factor.array.ndim == 1 else (*shape, y.type.shape[-1])
    lead = factor.array.ndim - max(2, len(shape))
    if lead > 0 and shape[:1] == (BATCH,):
        raise UnsupportedNodeError("its factor moves the batch away from axis 0", FIX_BATCH)
    return emit.reshape(y, (1,) * lead + shape if factor.array.ndim > 2 else shape)


def _dense_left(emit: Emitter, factor: Known, rows: NDArray[Any], x: Value) -> Value:
    """Computes factor @ x, as the transpose of x' @ factor'."""
    rows = rows.T if factor.array.ndim == 1 else rows
    swap = (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)
    y = emit.transpose(_dense(emit, emit.transpose(x, swap), rows, factor.name, None), swap)
    if factor.array.ndim == 1:
        return emit.reshape(y, (*y.type.shape[:-2], y.type.shape[-1]))
    lead = factor.array.ndim - y.type.rank
    if lead > 0 and y.type.shape[0] == BATCH:
        raise UnsupportedNodeError("its factor moves the batch away from axis 0", FIX_BATCH)
    return emit.reshape(y, (1,) * max(0, lead) + y.type.shape)


def _matmul_vectors(node: Node, emit: Emitter, left: Value, right: Value) -> Value:
    """By numpy's rule: a vector on the left is a row, on the right a column, and its axis goes away."""
    if 0 in (left.type.rank, right.type.rank):
        raise node.error("takes no scalars")
    row, column = left.type.rank == 1, right.type.rank == 1
    if (row and left.type.shape == (BATCH,)) or (column and right.type.shape == (BATCH,)):
        raise UnsupportedNodeError("it contracts the batch", FIX_BATCH)
    left = emit.reshape(left, (1, *left.type.shape)) if row else left
    right = emit.reshape(right, (*right.type.shape, 1)) if column else right
    y = emit.op("matmul", left, right)
    shape = y.type.shape[:-2] + (() if row else y.type.shape[-2:-1]) + (() if column else y.type.shape[-1:])
    return emit.reshape(y, shape)


def _dense(emit: Emitter, x: Value, rows: NDArray[Any], name: str, bias: NDArray[Any] | None) -> Value:
    """Computes x @ rows' + bias; ``rows`` is [M, K]."""
    weights = emit.constant(np.ascontiguousarray(rows), name)
    zeros = np.zeros(rows.shape[0], np.float32)
    return emit.op("dense", x, weights, emit.constant(zeros if bias is None else bias, f"{emit.stem}.bias"))


def _matrix(node: Node, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 2 or array.dtype != np.float32:
        raise node.error(f"takes a float matrix, not {array.dtype} of shape {list(array.shape)}")
    return array


def _scaled(array: NDArray[Any], factor: float) -> NDArray[Any]:
    return array if factor == 1 else (array * np.float32(factor)).astype(np.float32)


CONVERTERS: Final[Mapping[str, Converter]] = {"Gemm": _gemm, "MatMul": _matmul}
