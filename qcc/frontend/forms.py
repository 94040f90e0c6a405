"""Parameters that ONNX moved from attributes to inputs over the years, read in either form."""

from __future__ import annotations

from collections.abc import Sequence

from qcc.frontend.dims import Dim
from qcc.frontend.node import FIX_BATCH, Node, UnsupportedNodeError

SliceBounds = tuple[int, int | Dim, int | Dim, int]
"""Axis, start, end and step of one sliced axis, as written in the model."""


def axis_of(node: Node, axis: int, rank: int) -> int:
    """``axis`` counted from the front. Raises ModelError when it is out of range."""
    if not -rank <= axis < rank:
        raise node.error(f"axis {axis} is out of range for rank {rank}")
    return axis % rank


def axes_of(node: Node, rank: int, index: int = 1) -> list[int] | None:
    """The ``axes`` of a reduction, Squeeze or Unsqueeze (from attribute or input), from the front."""
    if node.has_attr("axes"):
        raw = node.attr_ints("axes")
    elif node.has(index):
        raw = node.int_list(index, "axes")
    else:
        return None
    axes = [axis_of(node, a, rank) for a in raw]
    if len(set(axes)) != len(axes):
        raise node.error(f"axes {raw} repeat")
    return axes


def slice_bounds(node: Node, rank: int) -> list[SliceBounds]:
    """What a Slice does, axis by axis."""
    if node.opset < 10:
        starts: Sequence[int | Dim] = node.attr_ints("starts")
        ends: Sequence[int | Dim] = node.attr_ints("ends")
        axes = node.attr_ints("axes", list(range(len(starts))))
        steps = [1] * len(starts)
    else:
        starts, ends = node.dim_list(1, "starts"), node.dim_list(2, "ends")
        axes = node.int_list(3, "axes") if node.has(3) else list(range(len(starts)))
        steps = node.int_list(4, "steps") if node.has(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        raise node.error("starts, ends, axes and steps do not fit together")
    places = [axis_of(node, a, rank) for a in axes]
    if len(set(places)) != len(places):
        raise node.error(f"axes {axes} repeat")
    return list(zip(places, starts, ends, steps, strict=True))


def plain(value: int | Dim, what: str) -> int:
    """``value`` as a number. Raises UnsupportedNodeError when it depends on the batch."""
    if isinstance(value, Dim):
        raise UnsupportedNodeError(f"its {what} depends on the batch", FIX_BATCH)
    return value


def split_sizes(node: Node, size: int) -> list[int]:
    """Lengths of the parts of a Split along an axis of ``size``."""
    parts = node.output_count
    if node.has_attr("split"):
        sizes = node.attr_ints("split")
    elif node.has(1):
        sizes = node.int_list(1, "split")
    else:
        parts = node.attr_int("num_outputs", parts)
        if parts < 1:
            raise node.error(f"cannot split into {parts} parts")
        step = -(-size // parts)
        sizes = [min(step, size - step * i) for i in range(min(parts, node.output_count))]
        if node.opset < 18 and size % parts:
            raise node.error(f"{size} does not split into {parts} equal parts")
    if sum(sizes) != size or min(sizes, default=0) < 0 or len(sizes) != node.output_count:
        raise node.error(f"split {sizes} does not fit size {size} and {node.output_count} outputs")
    return sizes


def pad_amounts(node: Node, rank: int) -> list[tuple[int, int]]:
    """Elements that a Pad adds before and after each axis; negative ones crop."""
    raw = node.attr_ints("pads") if node.opset < 11 else node.int_list(1, "pads")
    axes = [axis_of(node, a, rank) for a in node.int_list(3, "axes")] if node.has(3) else list(range(rank))
    if len(raw) != 2 * len(axes) or len(set(axes)) != len(axes):
        raise node.error(f"pads {raw} do not fit axes {axes}")
    amounts = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        amounts[axis] = (raw[place], raw[place + len(axes)])
    return amounts


def permutation(node: Node, rank: int) -> list[int]:
    """The ``perm`` of a Transpose; reversal by default."""
    perm = node.attr_ints("perm", list(reversed(range(rank))))
    if sorted(perm) != list(range(rank)):
        raise node.error(f"perm {perm} is no permutation of {rank} axes")
    return perm
