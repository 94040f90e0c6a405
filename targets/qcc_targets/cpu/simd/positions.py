"""Output positions of a contraction cut into tiles whose rows lie evenly in the input."""

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


def tiles(shape: Sequence[int], strides: Sequence[Sequence[int]], most: int) -> Tiles:
    """Cut positions of ``shape`` into tiles of at most ``most`` rows.

    ``strides`` has one entry per tensor, the input first. Where lines are short and evenly spaced
    in the input, a tile takes several of them.
    """
    plan = nest(shape, strides, lead=0)
    axis, inner = len(plan.dims) - 1, 1
    walk = plan.strides[0]
    while axis and 2 * inner * plan.dims[axis] <= most and walk[axis - 1] == plan.dims[axis] * walk[axis]:
        inner *= plan.dims[axis]
        axis -= 1
    size, fits = plan.dims[axis], most // inner
    return Tiles(plan, axis, -(-size // -(-size // fits)))
