"""Loops over tensors of any strides: axes sorted, merged, and the innermost in vector blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import View

Index = tuple[Any, ...]

THREADS: Final = "threads"
"""The feature of an instruction set whose threads have memory of their own: a GPU's."""


@dataclass(frozen=True, slots=True)
class Nest:
    """Loop extents, outermost first, and for each tensor its strides over these loops."""

    dims: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    def at(self, tensor: int, offset: int, index: Sequence[Any]) -> Any:
        """The element index of ``tensor`` at loop variables ``index``."""
        total: Any = offset
        for variable, stride in zip(index, self.strides[tensor], strict=True):
            if stride:
                total = total + variable * stride
        return total


def nest(shape: Sequence[int], strides: Sequence[Sequence[int]], lead: int = -1) -> Nest:
    """The fewest loops over ``shape`` that walk every tensor, in the memory order of tensor ``lead``."""
    axes = [a for a, d in enumerate(shape) if d > 1]
    axes.sort(key=lambda a: (-abs(strides[lead][a]), a))
    dims: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis in axes:
        dim, steps = shape[axis], [s[axis] for s in strides]
        if dims and all(walk[-1] == step * dim for walk, step in zip(walks, steps, strict=True)):
            dims[-1] *= dim
            for walk, step in zip(walks, steps, strict=True):
                walk[-1] = step
        else:
            dims.append(dim)
            for walk, step in zip(walks, steps, strict=True):
                walk.append(step)
    if not dims:
        return Nest((1,), tuple((0,) for _ in strides))
    return Nest(tuple(dims), tuple(map(tuple, walks)))


def loops(dims: Sequence[int], body: Callable[[Index], None], index: Index = ()) -> None:
    """Emit serial loops over ``dims`` around ``body``, which gets their variables."""
    if len(index) == len(dims):
        body(index)
    elif dims[len(index)] == 1:
        loops(dims, body, (*index, 0))
    else:
        with T.serial(0, dims[len(index)]) as variable:
            loops(dims, body, (*index, variable))


def in_lanes(extent: int, lanes: int, body: Callable[[Any], None]) -> None:
    """Emit ``body(i)`` for i in [0, extent): blocks of ``lanes`` as vectors, the rest one by one."""
    blocks = extent // lanes
    loops((blocks,) if blocks else (), lambda b: vector(lanes, body, b[0] * lanes) if b else None)
    if rest := extent % lanes:
        with T.serial(0, rest) as left:
            body(blocks * lanes + left)


def in_blocks(extent: int, lanes: int, body: Callable[[Any, int], None]) -> None:
    """Emit ``body(start, width)`` for blocks of ``lanes`` that cover [0, extent), the last ones narrower."""
    blocks = extent // lanes
    loops((blocks,) if blocks else (), lambda b: body(b[0] * lanes, lanes) if b else None)
    for first, width in powers_of_two(extent % lanes):
        body(blocks * lanes + first, width)


def powers_of_two(extent: int) -> list[tuple[int, int]]:
    """[0, extent) as ever narrower pieces (start, width)."""
    pieces, done = [], 0
    while done < extent:
        width = 1 << ((extent - done).bit_length() - 1)
        pieces.append((done, width))
        done += width
    return pieces


def vector(width: int, body: Callable[[Any], None], first: Any = 0) -> None:
    """Emit ``body(i)`` for ``width`` consecutive i from ``first`` on, as one vector."""
    if width == 1:
        body(first)
    else:
        with T.vectorized(0, width) as lane:
            body(first + lane)


def local(size: int, dtype: str, isa: Isa) -> Any:
    """Accumulators on the stack, which compilers move to registers where their indices are constant.

    On a CPU, TVM's scope ``local`` would go through its workspace allocator instead; threads of a GPU want it.
    """
    return T.alloc_buffer((size,), dtype, scope="local" if THREADS in isa else "global")


def lanes_for(isa: Isa, bits: int) -> int:
    """Elements of ``bits`` that a vector register holds; at least one."""
    return max(1, isa.vector_bits // bits)


def broadcast_strides(view: View, shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of ``view`` over a result of ``shape``: 0 along broadcast axes."""
    missing = len(shape) - view.rank
    own = [0 if d == 1 and n != 1 else s for d, s, n in zip(view.shape, view.strides, shape[missing:], strict=True)]
    return (*([0] * missing), *own)


def laid_out(array: NDArray[Any], output: View) -> tuple[NDArray[Any], tuple[int, ...]]:
    """A constant that broadcasts against ``output``, in that tensor's memory order, and its strides."""
    full = array.reshape((1,) * (output.rank - array.ndim) + array.shape)
    order = sorted(range(output.rank), key=lambda a: (-output.strides[a], a))
    strides = [0] * output.rank
    step = 1
    for axis in reversed(order):
        if full.shape[axis] > 1:
            strides[axis] = step
            step *= full.shape[axis]
    return np.ascontiguousarray(full.transpose(order)), tuple(strides)


def overlays(view: View, output: View) -> bool:
    """Whether the two tensors would occupy the same bytes, element by element."""
    same = (view.shape, view.strides, view.offset, view.itemsize) == (
        output.shape,
        output.strides,
        output.offset,
        output.itemsize,
    )
    return same and not view.external and not output.external
