"""From an integer graph to steps: every tensor gets a view in a storage, every operation a site.

Transposes, slices and most reshapes only change views. Concatenations are written in place where
the producers can. What remains of them becomes ``copy``; windowed operations find their padding in
a halo, which ``fill_halo`` writes before the tensor's first producer runs. Convolutions, products
and pooling never read the caller's memory: their kernels may read somewhat beyond a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.graph import Graph, Op, Value, op
from qcc.ir.types import BATCH
from qcc.verify.interp import evaluate_op
from qcc_targets.cpu import views
from qcc_targets.cpu.demand import (
    CONTRACTIONS,
    NO_BORDER,
    SPATIAL,
    WINDOWED,
    Border,
    Slot,
    halos,
    slots,
    window_border,
    zero_point,
)
from qcc_targets.cpu.kernel import Halo, Site, View

COPY: Final = "copy"
FILL_HALO: Final = "fill_halo"


class Space(StrEnum):
    """Whose memory a storage lies in."""

    ARENA = "arena"
    INPUT = "input"
    OUTPUT = "output"


@dataclass(slots=True)
class Storage:
    """A block of memory of ``size`` elements; ``index`` numbers the graph's inputs or outputs."""

    dtype: str
    size: int
    space: Space = Space.ARENA
    index: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's storage, by number, and its view of it."""

    storage: int
    view: View


@dataclass(frozen=True, slots=True)
class Step:
    """One call: a site, the storages of its inputs in order, and that of its output."""

    site: Site
    inputs: tuple[int, ...]
    output: int


@dataclass(frozen=True, slots=True)
class Lowered:
    storages: tuple[Storage, ...]
    steps: tuple[Step, ...]


def lower(graph: Graph, batch: int = 1, pixel: Callable[[int], int] | None = None) -> Lowered:
    """The steps that compute ``graph`` for ``batch`` samples at once. Raises TargetError.

    ``pixel`` gives the bytes that a pixel takes of those that it needs; by default they are as many.
    """
    return _Lowering(graph, batch, pixel).run()


@dataclass(slots=True)
class _Lowering:
    graph: Graph
    batch: int
    pixel: Callable[[int], int] | None = None
    storages: list[Storage] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    copies: dict[tuple[str, tuple[int, ...], Border], Place] = field(default_factory=dict)
    halos: Mapping[str, Halo] = field(init=False)
    slots: Mapping[str, Slot] = field(init=False)
    values: Mapping[str, Value] = field(init=False)
    outputs: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.halos = halos(self.graph)
        self.slots = slots(self.graph)
        self.values = {o.result.name: o.result for o in self.graph.ops}
        self.outputs = frozenset(v.name for v in self.graph.outputs)

    def run(self) -> Lowered:
        for index, value in enumerate(self.graph.inputs):
            view = views.logical(value.type.dtype, self.shape(value), external=True)
            self.places[value.name] = self._storage(view, Space.INPUT, index)
        for o in self.graph.ops:
            self._lower(o)
        for index, value in enumerate(self.graph.outputs):
            self._deliver(value, index)
        return Lowered(tuple(self.storages), tuple(map(self._final, self.steps)))

    # Operations

    def _lower(self, o: Op) -> None:
        if o.kind == "constant":
            self.arrays[o.result.name] = o.array
        elif all(v.name in self.arrays for v in o.operands):
            self.arrays[o.result.name] = evaluate_op(o, [self.arrays[v.name] for v in o.operands])
        elif o.kind in MOVES:
            MOVES[o.kind](self, o)
        else:
            self._compute(o)

    def _compute(self, o: Op) -> None:
        sources = [None if v.name in self.arrays else self._source(o, slot) for slot, v in enumerate(o.operands)]
        target = self.allocate(o.result, self._order(o, sources))
        self.emit(o, sources, target)

    def _source(self, o: Op, slot: int) -> Place:
        """The place of an operand, as the operation's kernels may read it."""
        value = o.operands[slot]
        place = self.places[value.name]
        if o.kind in WINDOWED and slot == 0:
            return self._windowed(value, window_border(o), o.kind in CONTRACTIONS)
        if o.kind == "iconv2d" and not place.view.channels_last:
            return self._copied(value, views.CHANNELS_LAST)
        if o.kind == "idense" and slot == 0 and place.view.strides[-1] != 1:
            return self._copied(value, range(place.view.rank))
        if o.kind in CONTRACTIONS and self.storages[place.storage].space is Space.INPUT:
            return self._copied(value, views.memory_order(place.view))
        return place

    def _order(self, o: Op, sources: Sequence[Place | None]) -> tuple[int, ...]:
        """The memory order of the result: that of the operands, unless the operation has its own."""
        rank = o.result.type.rank
        if o.kind in SPATIAL:
            return views.CHANNELS_LAST
        if o.kind not in ("idense", "imatmul"):
            given = [p.view for p in sources if p is not None and p.view.rank == rank]
            full = [v for v in given if v.shape == self.shape(o.result)]
            for view in (*full, *given):
                return views.memory_order(view)
        return tuple(range(rank))

    def emit(self, o: Op, sources: Sequence[Place | None], target: Place) -> None:
        """Append the call that computes ``o`` from ``sources`` (None: constant) into ``target``."""
        arrays = {v.name: self.arrays[v.name] for v in o.operands if v.name in self.arrays}
        site = Site(o, tuple(None if p is None else p.view for p in sources), target.view, arrays)
        self.steps.append(Step(site, tuple(p.storage for p in sources if p is not None), target.storage))

    # Places

    def shape(self, value: Value) -> tuple[int, ...]:
        return tuple(self.batch if d == BATCH else d for d in value.type.shape)

    def allocate(self, value: Value, order: Sequence[int]) -> Place:
        """A place for a new value: inside the concatenation that takes it, or a storage of its own."""
        if place := self._slot(value, order):
            self.places[value.name] = place
            return place
        halo = self.halos.get(value.name, Halo()) if tuple(order) == views.CHANNELS_LAST else Halo()
        external = value.name in self.outputs and not halo
        fill, pixel = zero_point(value.type), None if external else self.pixel
        view = views.dense(
            value.type.dtype, self.shape(value), order, halo=halo, fill=fill, external=external, pixel=pixel
        )
        place = self._storage(replace(view, external=False))
        self.places[value.name] = place
        if halo:
            self.emit(op(FILL_HALO, (), (value,)), (), place)
        return place

    def _slot(self, value: Value, order: Sequence[int]) -> Place | None:
        slot = self.slots.get(value.name)
        if slot is None:
            return None
        whole = self.places.get(slot.whole) or self.allocate(self.values[slot.whole], order)
        if views.memory_order(whole.view) != tuple(order):
            return None
        stop = slot.start + value.type.shape[slot.axis]
        return Place(whole.storage, views.sliced(whole.view, slot.axis, slot.start, stop))

    def _storage(self, view: View, space: Space = Space.ARENA, index: int = 0) -> Place:
        self.storages.append(Storage(view.dtype, views.extent(view), space, index))
        return Place(len(self.storages) - 1, view)

    def _windowed(self, value: Value, border: Border, aligned: bool) -> Place:
        """The value in the arena, channels-last, with at least ``border`` around it; copied where it is not so.

        ``aligned`` asks for pixels that begin where 32-bit words do, if pixels are padded at all.
        """
        place = self.places[value.name]
        view = place.view
        fits = self.pixel is None or not aligned or all(n * view.itemsize % 4 == 0 for n in _pixels(view))
        covered = not border.halo or (view.halo.covers(border.halo) and view.fill == border.fill)
        if view.channels_last and covered and fits and self.storages[place.storage].space is Space.ARENA:
            return place
        halo = border.halo
        if border.fill == zero_point(value.type):
            halo = halo.union(self.halos.get(value.name, Halo()))
        return self._copied(value, views.CHANNELS_LAST, Border(halo, border.fill) if halo else NO_BORDER)

    def _copied(self, value: Value, order: Sequence[int], border: Border = NO_BORDER) -> Place:
        """A copy of the value in the arena, made once for all that ask for the like."""
        key = (value.name, tuple(order), border)
        if key not in self.copies:
            view = views.dense(
                value.type.dtype, self.shape(value), order, halo=border.halo, fill=border.fill, pixel=self.pixel
            )
            target = self._storage(view)
            if border.halo:
                self.emit(op(FILL_HALO, (), (value,)), (), target)
            self.copy(value, self.places[value.name], target)
            self.copies[key] = target
        return self.copies[key]

    def copy(self, value: Value, source: Place | None, target: Place) -> None:
        """Append a copy of ``value`` (None: a constant) to ``target``; their shapes are equal."""
        self.emit(op(COPY, (value,), (value,)), (source,), target)

    # The border

    def _deliver(self, value: Value, index: int) -> None:
        """Bring an output to the caller's memory: by naming its storage so, or by a copy."""
        place = self.places.get(value.name)
        if place is not None:
            storage = self.storages[place.storage]
            read = any(place.storage in step.inputs for step in self.steps)
            if storage.space is Space.ARENA and not read and views.fills_storage(place.view, storage.size):
                storage.space, storage.index = Space.OUTPUT, index
                return
        view = views.logical(value.type.dtype, self.shape(value), external=True)
        self.copy(value, place, self._storage(view, Space.OUTPUT, index))

    def _final(self, step: Step) -> Step:
        """``step`` with the views of storages that turned out to be the caller's marked so."""

        def mark(view: View, storage: int) -> View:
            return replace(view, external=self.storages[storage].space is not Space.ARENA)

        numbers = iter(step.inputs)
        marked = tuple(None if v is None else mark(v, next(numbers)) for v in step.site.views)
        output = mark(step.site.output, step.output)
        return replace(step, site=replace(step.site, views=marked, output=output))


def _pixels(view: View) -> tuple[int, int]:
    return view.offset, view.pixel_stride


def _transpose(low: _Lowering, o: Op) -> None:
    source = low.places[o.operands[0].name]
    low.places[o.result.name] = replace(source, view=views.transposed(source.view, o.ints_attr("perm")))


def _slice(low: _Lowering, o: Op) -> None:
    source = low.places[o.operands[0].name]
    part = (o.int_attr(k) for k in ("axis", "start", "stop", "step"))
    low.places[o.result.name] = replace(source, view=views.sliced(source.view, *part))


def _reshape(low: _Lowering, o: Op) -> None:
    source, shape = low.places[o.operands[0].name], low.shape(o.result)
    if (view := views.reshaped(source.view, shape)) is not None:
        low.places[o.result.name] = replace(source, view=view)
        return
    spatial = any(u.kind in SPATIAL for u in low.graph.ops if o.result in u.operands)
    target = low.allocate(o.result, views.CHANNELS_LAST if spatial else range(len(shape)))
    common = views.refinement(source.view.shape, shape)
    if common is None:
        source = low._copied(o.operands[0], range(source.view.rank))
        common = shape
    parts = [views.reshaped(place.view, common) for place in (source, target)]
    if parts[0] is None or parts[1] is None:
        raise TargetError(f"{o}: no copy loop fits {source.view.shape} and {shape}")
    low.copy(o.operands[0], replace(source, view=parts[0]), replace(target, view=parts[1]))


def _concat(low: _Lowering, o: Op) -> None:
    target = low.places.get(o.result.name)
    if target is None:
        sources = [low.places.get(v.name) for v in o.operands]
        order = next(views.memory_order(p.view) for p in sources if p is not None)
        target = low.allocate(o.result, order)
    axis, start = o.int_attr("axis"), 0
    for v in o.operands:
        stop = start + v.type.shape[axis]
        part = replace(target, view=views.sliced(target.view, axis, start, stop))
        source = low.places.get(v.name)
        if source is None or not _same(source, part):
            low.copy(v, source, part)
        start = stop


def _same(a: Place, b: Place) -> bool:
    return a.storage == b.storage and a.view.offset == b.view.offset and a.view.strides == b.view.strides


def _pad(low: _Lowering, o: Op) -> None:
    """Copies the operand to the middle, then the pad values to the slabs before and behind it on each axis."""
    source = low.places[o.operands[0].name]
    target = low.allocate(o.result, views.memory_order(source.view))
    shape, rank = low.shape(o.result), o.result.type.rank
    pads = o.ints_attr("pads")
    values = _pad_values(o)
    inner = target.view
    for axis in range(rank):
        begin, end = pads[axis], shape[axis] - pads[axis + rank]
        for start, stop in ((0, begin), (end, shape[axis])):
            if start < stop:
                slab = values[:, start:stop] if axis == 1 and values.shape[1:2] != (1,) else values
                _fill(low, o.result, slab, replace(target, view=views.sliced(inner, axis, start, stop)))
        inner = views.sliced(inner, axis, begin, end)
        if axis == 1 and values.shape[1:2] != (1,):
            values = values[:, begin:end]
    low.copy(o.operands[0], source, replace(target, view=inner))


def _pad_values(o: Op) -> NDArray[Any]:
    """The pad codes, shaped to broadcast against the result."""
    rank, pads = o.result.type.rank, o.ints_attr("pads")
    codes = np.array(o.attrs["values"]).astype(o.result.type.numpy)
    if codes.size == 1:
        return codes.reshape((1,) * rank)
    extended = np.pad(codes, (pads[1], pads[1 + rank]), mode="edge")
    return extended.reshape([-1 if axis == 1 else 1 for axis in range(rank)])


def _fill(low: _Lowering, value: Value, codes: NDArray[Any], target: Place) -> None:
    """Append a copy of constant codes, which broadcast, to ``target``."""
    site = Site(op(COPY, (value,), (value,)), (None,), target.view, {value.name: codes})
    low.steps.append(Step(site, (), target.storage))


def _dilate(low: _Lowering, o: Op) -> None:
    source = low.places[o.operands[0].name]
    target = low.allocate(o.result, views.CHANNELS_LAST)
    fill = np.full((1, 1, 1, 1), zero_point(o.operands[0].type), o.result.type.numpy)
    _fill(low, o.result, fill, target)
    grid = target.view
    for axis, factor in zip((2, 3), o.ints_attr("factors"), strict=True):
        grid = views.sliced(grid, axis, 0, grid.shape[axis], factor)
    low.copy(o.operands[0], source, replace(target, view=grid))


MOVES: Final[Mapping[str, Callable[[_Lowering, Op], None]]] = {
    "transpose": _transpose,
    "slice": _slice,
    "reshape": _reshape,
    "concat": _concat,
    "pad": _pad,
    "dilate2d": _dilate,
}
