"""Output positions of a contraction cut into tiles, whose rows may have to lie evenly in the input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from qcc_targets.cpu.generic.nest import Nest, nest
from qcc_targets.cpu.simd.emit import Expr, least


@dataclass(frozen=True, slots=True)
class Tiles:
    """Positions in tiles of ``rows`` each, cut along loop ``axis`` of ``plan`` in steps of ``step``.

    Loops inside ``axis`` lie whole within a tile. The input is tensor 0: its positions within a
    tile are ``pitch`` elements apart. Neighbours may overlap; both then compute what they share.
    """

    plan: Nest
    axis: int
    step: int

    @property
    def rows(self) -> int:
        return self.step * prod(self.plan.dims[self.axis + 1 :])

    @property
    def parts(self) -> int:
        """Tiles along ``axis``."""
        return -(-self.plan.dims[self.axis] // self.step)

    @property
    def count(self) -> int:
        return prod(self.plan.dims[: self.axis]) * self.parts

    @property
    def pitch(self) -> int:
        return self.plan.strides[0][-1]

    @property
    def computed(self) -> int:
        """Positions computed, overlaps counted twice."""
        return self.count * self.rows

    def offset(self, tensor: int, row: int) -> int:
        """Elements of ``tensor`` from a tile's first position to that of ``row``."""
        total = 0
        for axis in reversed(range(self.axis, len(self.plan.dims))):
            size = self.plan.dims[axis] if axis > self.axis else self.step
            total += row % size * self.plan.strides[tensor][axis]
            row //= size
        return total

    def place(self, tensor: int, tile: int, row: int) -> tuple[int, int] | None:
        """Where row ``row`` of tile number ``tile`` of a block lies in ``tensor``.

        A tile of the block whose ``base`` counts, and elements from there; None where it is no position.
        """
        return tile, self.offset(tensor, row)

    def base(self, tensor: int, tile: Expr) -> Expr:
        """Elements of ``tensor`` from its first position to the first of tile number ``tile``."""
        strides = self.plan.strides[tensor]
        start = tile % self.parts if self.axis else tile
        begin = start * self.step
        if self.plan.dims[self.axis] % self.step:
            begin = least(begin, self.plan.dims[self.axis] - self.step)
        total, line = begin * strides[self.axis], tile // self.parts
        for axis in reversed(range(self.axis)):
            index = line % self.plan.dims[axis] if axis else line
            total, line = total + index * strides[axis], line // self.plan.dims[axis]
        return total


@dataclass(frozen=True, slots=True)
class PaddedTiles:
    """Planes of ``height`` x ``width`` positions, each read as one line with the halo between its rows.

    ``lines`` are positions of the input from one row to the next. What the tiles compute in the halo
    is no position. All ``parts`` tiles of a plane form one block; the last one overlaps the one before.
    """

    height: int
    width: int
    lines: int
    samples: int
    parts: int
    strides: tuple[tuple[int, ...], ...]

    @property
    def span(self) -> int:
        """Rows of the tiles of a plane, overlaps counted once."""
        return (self.height - 1) * self.lines + self.width

    @property
    def rows(self) -> int:
        return -(-self.span // self.parts)

    @property
    def count(self) -> int:
        return self.samples * self.parts

    @property
    def pitch(self) -> int:
        return self.strides[0][2]

    @property
    def computed(self) -> int:
        return self.count * self.rows

    def offset(self, tensor: int, row: int) -> int:
        """Elements of ``tensor`` between neighbours ``row`` apart in a row of the plane."""
        return row * self.strides[tensor][2]

    def place(self, tensor: int, tile: int, row: int) -> tuple[int, int] | None:
        line = self._start(tile) + row
        i, j = divmod(line, self.lines)
        if line < tile * self.rows or j >= self.width:
            return None
        return 0, i * self.strides[tensor][1] + j * self.strides[tensor][2]

    def base(self, tensor: int, tile: Expr) -> Expr:
        """For the input, elements to a tile's first row; for other tensors, to its plane."""
        sample, part = tile // self.parts, tile % self.parts
        total = sample * self.strides[tensor][0]
        return total + self._start(part) * self.pitch if tensor == 0 else total

    def _start(self, part: Expr) -> Expr:
        return least(part * self.rows, self.span - self.rows)


def padded_tiles(shape: Sequence[int], strides: Sequence[Sequence[int]], most: int, parts: int) -> PaddedTiles | None:
    """Tiles of at most ``most`` rows that take whole planes, ``parts`` or fewer to each, or None where none do."""
    if len(shape) != 3 or strides[0][2] <= 0 or strides[0][1] % strides[0][2]:
        return None
    lines = strides[0][1] // strides[0][2]
    span = (shape[1] - 1) * lines + shape[2]
    needed = -(-span // most)
    if shape[1] == 1 or lines <= shape[2] or needed > parts:
        return None
    return PaddedTiles(shape[1], shape[2], lines, shape[0], needed, tuple(map(tuple, strides)))


def tiles(shape: Sequence[int], strides: Sequence[Sequence[int]], most: int, *, even: bool = True) -> Tiles:
    """Cut positions of ``shape`` into tiles of at most ``most`` rows.

    ``strides`` has one entry per tensor, the input first. Where lines are short, a tile takes several
    of them; with ``even``, only where its rows then still are evenly spaced in the input.
    """
    plan = nest(shape, strides, lead=0)
    axis, inner = len(plan.dims) - 1, 1
    walk = plan.strides[0]
    while axis and 2 * inner * plan.dims[axis] <= most:
        if even and walk[axis - 1] != plan.dims[axis] * walk[axis]:
            break
        inner *= plan.dims[axis]
        axis -= 1
    size, fits = plan.dims[axis], most // inner
    return Tiles(plan, axis, -(-size // -(-size // fits)))
