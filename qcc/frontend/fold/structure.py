"""Folding of operations that make, move, repeat or select elements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.dims import Dim
from qcc.frontend.fold.base import Folder
from qcc.frontend.forms import axes_of, axis_of, pad_amounts, permutation, plain, slice_bounds, split_sizes
from qcc.frontend.limits import MAX_FOLDED_ELEMENTS, Budget
from qcc.frontend.node import Node, UnsupportedNodeError

Array = NDArray[Any]


def _shape(node: Node, budget: Budget) -> list[Array]:
    dims = node.known(0, "data").shape
    start, end = node.attr_int("start", 0), node.attr_int("end", len(dims))
    return [np.array(dims[slice(start, end)], np.int64)]


def _size(node: Node, budget: Budget) -> list[Array]:
    return [np.array(node.known(0, "data").size, np.int64)]


def _constant(node: Node, budget: Budget) -> list[Array]:
    if node.has_attr("value"):
        return [node.attr_tensor("value")]
    if node.has_attr("value_int"):
        return [np.array(node.attr_int("value_int"), np.int64)]
    if node.has_attr("value_ints"):
        return [np.array(node.attr_ints("value_ints"), np.int64)]
    if node.has_attr("value_float"):
        return [np.array(node.attr_float("value_float"), np.float32)]
    if node.has_attr("value_floats"):
        return [np.array(node.attr_floats("value_floats"), np.float32)]
    raise UnsupportedNodeError("it holds no dense numbers", "store the constant as a dense tensor")


def _constant_of_shape(node: Node, budget: Budget) -> list[Array]:
    shape = _extents(node, node.int_list(0, "shape"))
    budget.claim(shape)
    fill = node.attr_tensor("value") if node.has_attr("value") else np.zeros(1, np.float32)
    if fill.size != 1:
        raise node.error("its value must be one element")
    return [np.full(shape, fill.reshape(-1)[0])]


def _range(node: Node, budget: Budget) -> list[Array]:
    start, limit, delta = (node.fixed(i, what) for i, what in enumerate(("start", "limit", "delta")))
    if not start.size == limit.size == delta.size == 1 or not delta.any():
        raise node.error("start, limit and delta must be single numbers, delta not 0")
    length = math.ceil((float(limit.item()) - float(start.item())) / float(delta.item()))
    budget.claim((max(length, 0),))
    steps = np.arange(max(length, 0), dtype=start.dtype)
    return [(start.reshape(()) + steps * delta.reshape(())).astype(start.dtype)]


def _reshape(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    shape = [plain(d, "shape") for d in node.dim_list(1, "shape")]
    if not node.attr_int("allowzero", 0):
        if any(d == 0 and i >= data.ndim for i, d in enumerate(shape)):
            raise node.error(f"shape {shape} copies a dimension that the data has not")
        shape = [data.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return [data.reshape(shape)]


def _flatten(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    axis = node.attr_int("axis", 1)
    axis = axis + data.ndim if axis < 0 else axis
    return [data.reshape(math.prod(data.shape[:axis]), -1)]


def _squeeze(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    axes = axes_of(node, data.ndim)
    return [np.squeeze(data, None if axes is None else tuple(axes))]


def _unsqueeze(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    raw = node.attr_ints("axes") if node.has_attr("axes") else node.int_list(1, "axes")
    return [np.expand_dims(data, tuple(raw))]


def _transpose(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    return [data.transpose(permutation(node, data.ndim))]


def _concat(node: Node, budget: Budget) -> list[Array]:
    arrays = [node.known(i, "part") for i in range(len(node.inputs))]
    budget.claim((sum(a.size for a in arrays),))
    return [np.concatenate(arrays, node.attr_int("axis"))]


def _slice(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    index = [slice(None)] * data.ndim
    for axis, start, end, step in slice_bounds(node, data.ndim):
        index[axis] = slice(plain(start, "start"), plain(end, "end"), step)
    return [data[tuple(index)]]


def _split(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    axis = axis_of(node, node.attr_int("axis", 0), data.ndim)
    sizes = split_sizes(node, data.shape[axis])
    return np.split(data, np.cumsum(sizes)[:-1].tolist(), axis)


def _gather(node: Node, budget: Budget) -> list[Array]:
    data, indices = node.known(0, "data"), node.fixed(1, "indices").astype(np.int64)
    axis = axis_of(node, node.attr_int("axis", 0), data.ndim)
    budget.claim((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]))
    return [np.take(data, indices, axis)]


def _gather_elements(node: Node, budget: Budget) -> list[Array]:
    data, indices = node.known(0, "data"), node.fixed(1, "indices").astype(np.int64)
    budget.claim(indices.shape)
    return [np.take_along_axis(data, indices, node.attr_int("axis", 0))]


def _expand(node: Node, budget: Budget) -> list[Array]:
    data, shape = node.known(0, "data"), _extents(node, node.int_list(1, "shape"))
    result = np.broadcast_shapes(data.shape, shape)
    budget.claim(result)
    return [np.broadcast_to(data, result)]


def _tile(node: Node, budget: Budget) -> list[Array]:
    data, repeats = node.known(0, "data"), _extents(node, node.int_list(1, "repeats"))
    if len(repeats) != data.ndim:
        raise node.error(f"{len(repeats)} repeats do not fit rank {data.ndim}")
    budget.claim(d * r for d, r in zip(data.shape, repeats, strict=True))
    return [np.tile(data, repeats)]


def _pad(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    amounts = pad_amounts(node, data.ndim)
    grow = [(max(before, 0), max(after, 0)) for before, after in amounts]
    budget.claim(d + before + after for d, (before, after) in zip(data.shape, grow, strict=True))
    crop = tuple(slice(max(-b, 0), d - max(-a, 0)) for d, (b, a) in zip(data.shape, amounts, strict=True))
    mode = node.attr_str("mode", "constant")
    if mode == "constant":
        fill = node.scalar(2, "value", node.attr_float("value", 0.0))
        return [np.pad(data[crop], grow, constant_values=fill)]
    if mode not in ("reflect", "edge", "wrap"):
        raise node.error(f"unknown mode '{mode}'")
    return [np.pad(data[crop], grow, mode)]  # type: ignore[call-overload]


def _eye_like(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    if data.ndim != 2:
        raise node.error("takes a matrix")
    dtype = node.attr_dtype("dtype") if node.has_attr("dtype") else data.dtype
    rows, columns = data.shape
    return [np.eye(rows, columns, k=node.attr_int("k", 0), dtype=dtype)]


def _triangle(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    budget.claim(data.shape)
    k = int(node.scalar(1, "k", 0))
    return [np.triu(data, k) if node.attr_int("upper", 1) else np.tril(data, k)]


def _non_zero(node: Node, budget: Budget) -> list[Array]:
    data = node.known(0, "data")
    budget.claim((data.ndim, data.size))
    return [np.array(np.nonzero(np.atleast_1d(data)), np.int64)]


def _one_hot(node: Node, budget: Budget) -> list[Array]:
    indices, depth = node.fixed(0, "indices").astype(np.int64), int(node.scalar(1, "depth", 0))
    values = node.fixed(2, "values")
    if depth < 1 or values.size != 2:
        raise node.error("needs a positive depth and two values")
    axis = axis_of(node, node.attr_int("axis", -1), indices.ndim + 1)
    budget.claim((*indices.shape, depth))
    hot = np.expand_dims(indices % depth, axis) == np.arange(depth).reshape([-1] + [1] * (indices.ndim - axis))
    valid = np.expand_dims((indices >= -depth) & (indices < depth), axis)
    return [np.where(hot & valid, values[1], values[0]).astype(values.dtype)]


def _extents(node: Node, shape: Sequence[int]) -> list[int]:
    """``shape``, if it can be a tensor's: the product is bounded later, a single huge factor here."""
    if len(shape) > 32 or any(d < 0 for d in shape):
        raise node.error(f"bad shape {list(shape)}")
    if any(d > MAX_FOLDED_ELEMENTS for d in shape):
        raise node.error(f"shape {list(shape)} is too large")
    return list(shape)


def dims_array(shape: Sequence[int | Dim]) -> Array:
    """A shape tensor: int64, or an object array where the batch occurs."""
    symbolic = any(isinstance(d, Dim) for d in shape)
    array = np.empty(len(shape), object if symbolic else np.int64)
    array[:] = shape
    return array


FOLDERS: Final[Mapping[str, Folder]] = {
    "Shape": _shape,
    "Size": _size,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "EyeLike": _eye_like,
    "Trilu": _triangle,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
}
