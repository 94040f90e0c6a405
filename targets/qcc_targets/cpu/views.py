"""Algebra of views: what transposes, slices and reshapes do to a tensor that stays where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import prod

from qcc_targets.cpu.kernel import ALIGN, Halo, View, row_major

CHANNELS_LAST = (0, 2, 3, 1)
"""The order of the axes of [N, C, H, W] in memory, outermost first."""


def transposed(view: View, perm: Sequence[int]) -> View:
    """``view`` with its axes in another logical order."""
    shape = tuple(view.shape[p] for p in perm)
    halo = view.halo if tuple(perm) == tuple(range(view.rank)) else Halo()
    return replace(view, shape=shape, strides=tuple(view.strides[p] for p in perm), halo=halo)


def sliced(view: View, axis: int, start: int, stop: int, step: int = 1) -> View:
    """``view[…, start:stop:step, …]``; a halo stays only where channels are selected."""
    shape, strides = list(view.shape), list(view.strides)
    shape[axis] = len(range(start, stop, step))
    strides[axis] *= step
    halo = view.halo if axis == 1 and view.rank == 4 else Halo()
    offset = view.offset + start * view.strides[axis]
    return replace(view, shape=tuple(shape), strides=tuple(strides), offset=offset, halo=halo)


def reshaped(view: View, shape: Sequence[int]) -> View | None:
    """``view`` under another shape of equal size, or None where no strides can express it."""
    if tuple(shape) == view.shape:
        return view
    strides: list[int] = []
    runs = _runs(view)
    size, stride = next(runs)
    left = size
    for dim in shape:
        if dim == 1:
            strides.append(0)
            continue
        if left == 1:
            size, stride = next(runs)
            left = size
        if left % dim:
            return None
        left //= dim
        strides.append(left * stride)
    return replace(view, shape=tuple(shape), strides=_unit_strides(shape, strides), halo=Halo())


def _runs(view: View) -> Iterator[tuple[int, int]]:
    """The maximal groups of axes that one stride walks in logical order: (size, innermost stride)."""
    size, stride = 1, 1
    for dim, step in zip(view.shape, view.strides, strict=True):
        if dim == 1:
            continue
        if size > 1 and stride == dim * step:
            size, stride = size * dim, step
            continue
        if size > 1:
            yield size, stride
        size, stride = dim, step
    yield size, stride


def _unit_strides(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """Axes of one element get the stride that a dense array would have there: it is never walked."""
    filled = list(strides)
    inner = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1:
            filled[axis] = inner
        inner = max(inner, filled[axis] * shape[axis])
    return tuple(filled)


def refinement(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...] | None:
    """The coarsest shape that splits the axes of both ``a`` and ``b``, or None."""
    total = prod(a)
    edges = sorted({prod(s[axis:]) for s in (a, b) for axis in range(len(s) + 1)} | {total}, reverse=True)
    shape = []
    for outer, inner in pairwise(edges):
        if outer % inner:
            return None
        shape.append(outer // inner)
    return tuple(shape) or (1,)


def memory_order(view: View) -> tuple[int, ...]:
    """The axes of ``view``, outermost in memory first."""
    if view.channels_last:
        return CHANNELS_LAST
    return tuple(sorted(range(view.rank), key=lambda axis: (-view.strides[axis], axis)))


def dense(
    dtype: str,
    shape: Sequence[int],
    order: Sequence[int],
    *,
    halo: Halo = Halo(),  # noqa: B008 - frozen
    fill: int = 0,
    external: bool = False,
    pixel: Callable[[int], int] | None = None,
) -> View:
    """A view that fills its storage: axes in memory ``order``, with a halo if channels lie last.

    Samples of channels-last tensors and the first element inside the halo start at multiples of
    ``ALIGN`` bytes, and ``pixel`` gives the bytes that one pixel takes of those that it needs, except where
    the memory is the caller's.
    """
    shape = tuple(shape)
    strides = [0] * len(shape)
    step = 1
    for axis in reversed(order):
        strides[axis] = step
        step *= shape[axis]
    view = View(dtype, shape, tuple(strides), fill=fill, external=external)
    if external or tuple(order) != CHANNELS_LAST or (shape[0] == 1 and not halo and pixel is None):
        return view
    unit = ALIGN // view.itemsize
    column = shape[1] if pixel is None else pixel(shape[1] * view.itemsize) // view.itemsize
    row = (shape[3] + halo.left + halo.right) * column
    offset = -(-(halo.top * row + halo.left * column) // unit) * unit
    sample = -(-((shape[2] + halo.top + halo.bottom) * row) // unit) * unit
    return replace(view, strides=(sample, 1, row, column), offset=offset, halo=halo)


def extent(view: View) -> int:
    """Elements of the storage that ``view``, halo included, needs from the storage's start."""
    last = view.index(*(d - 1 for d in view.shape)) + 1
    if view.halo:
        last += view.halo.bottom * view.row_stride + view.halo.right * view.pixel_stride
    return int(last)


def fills_storage(view: View, size: int) -> bool:
    """Whether the tensor is its storage of ``size`` elements, densely, in logical order."""
    return view.contiguous and view.offset == 0 and view.size == size and not view.halo


def logical(dtype: str, shape: Sequence[int], *, external: bool = False) -> View:
    """A dense view in logical (row-major) order."""
    return View(dtype, tuple(shape), row_major(shape), external=external)
