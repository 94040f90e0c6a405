"""Shapes, and operations that only re-label or reorder axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from qcc.frontend.convert.base import Converter
from qcc.frontend.dims import BATCH_DIM, Dim, UndecidedError
from qcc.frontend.emit import Emitter
from qcc.frontend.fold.structure import dims_array
from qcc.frontend.forms import axes_of, permutation
from qcc.frontend.node import FIX_BATCH, Known, Node, UnsupportedNodeError
from qcc.ir.graph import Value
from qcc.ir.types import BATCH


def dims_of(value: Value) -> list[int | Dim]:
    """The value's shape, the batch as a symbol that can be computed with."""
    return [BATCH_DIM if d == BATCH else d for d in value.type.shape]


def shape_of(dims: Sequence[int | Dim], what: str) -> tuple[int, ...]:
    """The inverse of ``dims_of``. Raises UnsupportedNodeError where the batch does not stand alone in front."""
    if any(isinstance(d, Dim) and (d != BATCH_DIM or axis) for axis, d in enumerate(dims)):
        raise UnsupportedNodeError(f"{what} moves the batch away from axis 0 or merges it with another axis", FIX_BATCH)
    return tuple(BATCH if isinstance(d, Dim) else d for d in dims)


def product(dims: Sequence[int | Dim]) -> int | Dim:
    """Number of elements. Raises UndecidedError where the batch occurs twice."""
    total: int | Dim = 1
    for dim in dims:
        total = total * dim
    return total


def _shape(node: Node, emit: Emitter) -> Known:
    dims = dims_of(emit.value(node.tensor(0)))
    start, end = node.attr_int("start", 0), node.attr_int("end", len(dims))
    return Known(dims_array(dims[slice(start, end)]), emit.stem)


def _size(node: Node, emit: Emitter) -> Known:
    return Known(dims_array([product(dims_of(emit.value(node.tensor(0))))]).reshape(()), emit.stem)


def _reshape(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    dims, wanted = dims_of(x), node.dim_list(1, "shape")
    if not node.attr_int("allowzero", 0):
        if any(d == 0 and axis >= len(dims) for axis, d in enumerate(wanted)):
            raise node.error(f"shape {_spelled(wanted)} copies a dimension that its input has not")
        wanted = [dims[axis] if d == 0 else d for axis, d in enumerate(wanted)]
    return emit.reshape(x, shape_of(_inferred(node, dims, wanted), f"the shape {_spelled(wanted)}"))


def _inferred(node: Node, dims: Sequence[int | Dim], wanted: Sequence[int | Dim]) -> list[int | Dim]:
    """``wanted`` with its -1 replaced by what is left of the elements in ``dims``."""
    if wanted.count(-1) > 1 or any(isinstance(d, int) and d < -1 for d in wanted):
        raise node.error(f"bad shape {_spelled(wanted)}")
    given = [d for d in wanted if d != -1]
    try:
        total, rest = product(dims), product(given)
        if -1 in wanted:
            if rest == 0 or (isinstance(total, int) and isinstance(rest, int) and total % rest):
                raise node.error(f"{_spelled(dims)} does not divide into shape {_spelled(wanted)}")
            left: int | Dim = total // rest
            return [left if d == -1 else d for d in wanted]
    except UndecidedError:
        raise UnsupportedNodeError(f"the shape {_spelled(wanted)} mixes the batch with other axes", FIX_BATCH) from None
    if total != rest and (isinstance(total, Dim) or isinstance(rest, Dim)):
        raise UnsupportedNodeError(f"the shape {_spelled(wanted)} is for one fixed batch size", FIX_BATCH)
    return list(wanted)


def _spelled(dims: Sequence[int | Dim]) -> str:
    return "[" + ", ".join("N" if d == BATCH_DIM else str(d) for d in dims) + "]"


def _flatten(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    axis = node.attr_int("axis", 1)
    if not -x.type.rank <= axis <= x.type.rank:
        raise node.error(f"axis {axis} is out of range")
    axis = axis + x.type.rank if axis < 0 else axis
    dims = dims_of(x)
    return emit.reshape(x, shape_of([product(dims[:axis]), product(dims[axis:])], f"flattening at axis {axis}"))


def _transpose(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    return emit.transpose(x, permutation(node, x.type.rank))


def _squeeze(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    shape = x.type.shape
    axes = axes_of(node, x.type.rank)
    if axes is None:
        axes = [a for a, d in enumerate(shape) if d == 1]
    if any(shape[a] == BATCH for a in axes):
        raise UnsupportedNodeError("it removes the batch axis", FIX_BATCH)
    if any(shape[a] != 1 for a in axes):
        raise node.error(f"axes {axes} of shape {list(shape)} are not all of size 1")
    return emit.reshape(x, [d for a, d in enumerate(shape) if a not in axes])


def _unsqueeze(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    raw = node.attr_ints("axes") if node.has_attr("axes") else node.int_list(1, "axes")
    rank = x.type.rank + len(raw)
    axes = {a % rank for a in raw if -rank <= a < rank}
    if len(axes) != len(raw):
        raise node.error(f"bad axes {raw} for a result of rank {rank}")
    dims = iter(dims_of(x))
    result = [1 if a in axes else next(dims) for a in range(rank)]
    return emit.reshape(x, shape_of(result, f"adding axes {raw}"))


def _depth_to_space(node: Node, emit: Emitter) -> Value:
    x, block = _blocks(node, emit)
    n, c, h, w = x.type.shape
    depth = c // block**2
    if depth * block**2 != c:
        raise node.error(f"{c} channels do not divide by blocks of {block}x{block}")
    mode = node.attr_str("mode", "DCR")
    if mode == "DCR":
        split, perm = (n, block, block, depth, h, w), (0, 3, 4, 1, 5, 2)
    elif mode == "CRD":
        split, perm = (n, depth, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        raise node.error(f"unknown mode '{mode}'")
    return emit.reshape(emit.transpose(emit.reshape(x, split), perm), (n, depth, h * block, w * block))


def _space_to_depth(node: Node, emit: Emitter) -> Value:
    x, block = _blocks(node, emit)
    n, c, h, w = x.type.shape
    if h % block or w % block:
        raise node.error(f"size {h}x{w} does not divide by blocks of {block}x{block}")
    tiles = emit.reshape(x, (n, c, h // block, block, w // block, block))
    return emit.reshape(emit.transpose(tiles, (0, 3, 5, 1, 2, 4)), (n, c * block**2, h // block, w // block))


def _blocks(node: Node, emit: Emitter) -> tuple[Value, int]:
    x, block = emit.value(node.tensor(0)), node.attr_int("blocksize")
    if x.type.rank != 4 or block < 1:
        raise node.error(f"takes [N,C,H,W] and a positive block size, not {list(x.type.shape)} and {block}")
    return x, block


def _cast(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    mark = emit.mark(x)
    target = _cast_target(node, emit)
    if target.kind == "f":
        if x.type.dtype == "i64":
            raise UnsupportedNodeError("it turns 64-bit integers into reals", "give the model a float or 8-bit input")
        return emit.unmarked(x)
    if x.type.dtype == "i64" and target.kind in "iu" and target.itemsize >= 4:
        return x
    if mark is not None and np.can_cast(np.dtype(mark), target) and target.kind in "iu":
        return x
    raise UnsupportedNodeError(f"it turns {mark or 'float32'} into {target}", "only casts to float are supported")


def _cast_target(node: Node, emit: Emitter) -> np.dtype[Any]:
    if node.op == "Cast":
        return node.attr_dtype("to")
    like = node.tensor(1)
    if isinstance(like, Known):
        return np.dtype(np.int64) if like.symbolic else like.array.dtype
    return np.dtype(emit.mark(like) or "float32")


CONVERTERS: Final[Mapping[str, Converter]] = {
    "Shape": _shape,
    "Size": _size,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Cast": _cast,
    "CastLike": _cast,
}
