"""Operations that select, repeat or join elements: slices, gathers, pads, concatenations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from qcc.errors import ModelError
from qcc.frontend.convert.base import Converter
from qcc.frontend.convert.layout import dims_of, shape_of
from qcc.frontend.dims import BATCH_DIM, Dim
from qcc.frontend.emit import Emitter
from qcc.frontend.forms import axis_of, pad_amounts, plain, slice_bounds, split_sizes
from qcc.frontend.limits import MAX_INDICES
from qcc.frontend.node import FIX_BATCH, Node, UnsupportedNodeError
from qcc.ir.graph import Value
from qcc.ir.types import BATCH

_TO_END: Final = 2**31 - 1
"""Exporters write this, or anything larger, for 'to the end'."""


def select(emit: Emitter, x: Value, axis: int, indices: Sequence[int]) -> Value:
    """Elements ``indices`` of ``axis``: nothing, a slice, or a gather. Raises ModelError out of range."""
    size = x.type.shape[axis]
    if size == BATCH:
        raise UnsupportedNodeError("it selects samples of the batch", FIX_BATCH)
    if len(indices) > MAX_INDICES:
        raise ModelError(f"{len(indices)} indices are too many")
    if not indices:
        raise ModelError("it selects nothing: its result is empty")
    if min(indices) < 0 or max(indices) >= size:
        raise ModelError(f"indices reach beyond axis {axis} of size {size}")
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    run = range(indices[0], indices[-1] + 1, step) if step > 0 else range(0)
    if len(run) != len(indices) or list(run) != list(indices):
        return emit.op("gather", x, axis=axis, indices=tuple(indices))
    if len(run) == size:
        return x
    return emit.op("slice", x, axis=axis, start=run.start, stop=run.stop, step=step)


def _slice(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    for axis, start, end, step in slice_bounds(node, x.type.rank):
        size = x.type.shape[axis]
        if size == BATCH:
            whole = end == BATCH_DIM if isinstance(end, Dim) else end >= _TO_END
            if start != 0 or step != 1 or not whole:
                raise UnsupportedNodeError("it selects samples of the batch", FIX_BATCH)
            continue
        run = range(*slice(plain(start, "start"), plain(end, "end"), step).indices(size))
        if len(run) > MAX_INDICES and step < 0:
            raise node.error("it reverses too many elements")
        x = _cut(node, emit, x, axis, run)
    return x


def _cut(node: Node, emit: Emitter, x: Value, axis: int, run: range) -> Value:
    if not run:
        raise node.error(f"it selects nothing of axis {axis}: its result is empty")
    if len(run) == x.type.shape[axis] and run.step > 0:
        return x
    if run.step > 0:
        return emit.op("slice", x, axis=axis, start=run.start, stop=run.stop, step=run.step)
    return select(emit, x, axis, run)


def _split(node: Node, emit: Emitter) -> list[Value]:
    x = emit.value(node.tensor(0))
    axis = axis_of(node, node.attr_int("axis", 0), x.type.rank)
    if x.type.shape[axis] == BATCH:
        raise UnsupportedNodeError("it splits the batch", FIX_BATCH)
    parts, start = [], 0
    for size in split_sizes(node, x.type.shape[axis]):
        parts.append(_cut(node, emit, x, axis, range(start, start + size)))
        start += size
    return parts


def _concat(node: Node, emit: Emitter) -> Value:
    parts = [emit.value(node.tensor(i)) for i in range(len(node.inputs))]
    if not parts:
        raise node.error("has no inputs")
    axis = axis_of(node, node.attr_int("axis"), parts[0].type.rank)
    batched = [v.type.shape[:1] == (BATCH,) for v in parts]
    if any(batched) and (axis == 0 or not all(batched)):
        raise UnsupportedNodeError("it joins samples, or constants with every sample of the batch", FIX_BATCH)
    return parts[0] if len(parts) == 1 else emit.op("concat", *parts, axis=axis)


def _gather(node: Node, emit: Emitter) -> Value:
    array = node.fixed(1, "indices")
    x = emit.value(node.tensor(0))
    axis = axis_of(node, node.attr_int("axis", 0), x.type.rank)
    size = x.type.shape[axis]
    if array.size > MAX_INDICES or array.dtype.kind not in "iu":
        raise node.error(f"bad indices: {array.size} of {array.dtype}")
    if size == BATCH:
        raise UnsupportedNodeError("it selects samples of the batch", FIX_BATCH)
    flat = [int(i) for i in array.reshape(-1)]
    y = select(emit, x, axis, [i + size if i < 0 else i for i in flat])
    return emit.reshape(y, (*y.type.shape[:axis], *array.shape, *y.type.shape[axis + 1 :]))


def _expand(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    wanted = node.dim_list(1, "shape")
    rank = max(x.type.rank, len(wanted))
    dims = [1] * (rank - x.type.rank) + dims_of(x)
    x = emit.reshape(x, shape_of(dims, "adding leading axes"))
    for axis, target in enumerate([1] * (rank - len(wanted)) + wanted):
        if target == 1 or target == dims[axis]:
            continue
        if isinstance(target, Dim) or dims[axis] != 1:
            if isinstance(target, Dim) or isinstance(dims[axis], Dim):
                raise UnsupportedNodeError("it repeats data for every sample of the batch", FIX_BATCH)
            raise node.error(f"size {dims[axis]} at axis {axis} cannot be expanded to {target}")
        x = select(emit, x, axis, [0] * _bounded(node, target))
    return x


def _tile(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    repeats = node.int_list(1, "repeats")
    if len(repeats) != x.type.rank or min(repeats, default=1) < 1:
        raise node.error(f"repeats {repeats} do not fit rank {x.type.rank}")
    for axis, times in enumerate(repeats):
        if times > 1:
            size = x.type.shape[axis]
            _bounded(node, times * max(size, 1))
            x = select(emit, x, axis, [*range(max(size, 1))] * times)
    return x


def _pad(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    amounts = pad_amounts(node, x.type.rank)
    if x.type.shape[:1] == (BATCH,) and amounts[0] != (0, 0):
        raise UnsupportedNodeError("it pads the batch", FIX_BATCH)
    for axis, (before, after) in enumerate(amounts):
        if min(before, after) < 0:
            size = x.type.shape[axis]
            x = _cut(node, emit, x, axis, range(max(-before, 0), size - max(-after, 0)))
    grow = [(max(before, 0), max(after, 0)) for before, after in amounts]
    mode = node.attr_str("mode", "constant")
    if not any(map(any, grow)):
        return x
    if mode == "constant":
        fill = node.scalar(2, "value", node.attr_float("value", 0.0))
        pads = (*(before for before, _ in grow), *(after for _, after in grow))
        return emit.op("pad", x, pads=pads, values=(fill,))
    if mode not in ("reflect", "edge", "wrap"):
        raise node.error(f"unknown mode '{mode}'")
    for axis, amount in enumerate(grow):
        if any(amount):
            x = select(emit, x, axis, _mirrored(node, x.type.shape[axis], amount, mode))
    return x


def _mirrored(node: Node, size: int, amount: tuple[int, int], mode: Any) -> list[int]:
    _bounded(node, size + sum(amount))
    return [int(i) for i in np.pad(np.arange(size), amount, mode)]


def _bounded(node: Node, length: int) -> int:
    if length > MAX_INDICES:
        raise node.error(f"an axis of {length} repeated or mirrored elements is too long")
    return length


CONVERTERS: Final[Mapping[str, Converter]] = {
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
}
