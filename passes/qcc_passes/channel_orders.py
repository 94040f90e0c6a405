"""Rewriting a graph for other orders of its channels: weights, biases, constants and scales move, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import Graph, Op, Value, constant, constants, fresh_name, op, rewrite
from qcc.ir.layout import Blocks, Widths
from qcc.ir.types import Quant
from qcc_passes.channel_groups import ChannelGroups, arriving
from qcc_passes.channel_labels import Ints, permuted
from qcc_passes.channel_rules import is_depthwise

_Content = tuple[NDArray[Any], Quant | None]

ELEMENTWISE = frozenset({"add", "sub", "mul", "div", "map"})
"""Operations whose constant operands follow the order of the result."""


def reordered(graph: Graph, groups: ChannelGroups, order: Mapping[int, int]) -> Graph:
    """``graph`` (FLOAT or QUANTIZED, with its ``groups``) computing the same with channels in other seats.

    ``order`` maps the channel of a seat to the channel that takes it, within classes that are free.
    Raises PassError where it is no permutation of such classes.
    """
    _check(groups, order)
    return rewrite(graph, _Reorder(graph, groups, order).apply)


def _check(groups: ChannelGroups, order: Mapping[int, int]) -> None:
    left = dict(order)
    for c in groups.free:
        moving = [(seat, left.pop(seat)) for seat in c.channels if seat in left]
        if sorted(seat for seat, _ in moving) != sorted(taken for _, taken in moving):
            raise PassError(f"the order of the class of channel {c.channels[0]} is no permutation of its channels")
    if fixed := sorted(seat for seat, taken in left.items() if seat != taken):
        raise PassError(f"channel {fixed[0]} cannot move: its class is not free")


class _Reorder:
    def __init__(self, graph: Graph, groups: ChannelGroups, order: Mapping[int, int]) -> None:
        self._groups = groups
        self._order = order
        self._arrays = constants(graph)
        self._taken = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops}
        self._known: dict[tuple[str, tuple[int, ...], Quant | None, bytes], Value] = {}

    def apply(self, o: Op) -> list[Op] | None:
        """The rule for ``rewrite``: other constants for the operation, which itself stays."""
        if o.kind in ("conv2d", "dense"):
            arrays = self._linear(o)
        elif o.kind in ELEMENTWISE:
            arrays = self._combined(o, range(len(o.operands)))
        else:
            return None
        operands = list(o.operands)
        made: list[Op] = []
        for slot, (array, quant) in arrays.items():
            operands[slot] = self._constant(operands[slot], np.ascontiguousarray(array), quant, made)
        return [*made, op(o.kind, operands, o.results, **o.attrs)] if arrays else None

    def _linear(self, o: Op) -> dict[int, _Content]:
        """What the constant operands of a conv2d or dense hold, by slot; nothing where all stays."""
        x, w, b = o.operands[:3]
        rows = arriving(self._groups, self._order, o.result)
        columns = None if is_depthwise(o) else arriving(self._groups, self._order, x)
        weights, bias = self._arrays.get(w.name), self._arrays.get(b.name)
        if weights is None or bias is None or (rows is None and columns is None):
            return {}
        groups = o.int_attr("groups") if o.kind == "conv2d" else 1
        if (grid := w.type.quant) is not None and isinstance(grid.layout, Blocks) and columns is not None:
            weights = grid.dequantize(grid.quantize(weights))  # exponents are those of the blocks before the move
        found: dict[int, _Content] = {1: (_rewired(weights, rows, columns, groups), _scales(w, rows, columns))}
        if rows is not None:
            found[2] = (bias[rows], _scales(b, rows))
        return found | self._combined(o, range(3, len(o.operands)))

    def _combined(self, o: Op, slots: Iterable[int]) -> dict[int, _Content]:
        """The constants at ``slots``, which meet the result element by element, in its new order."""
        source = arriving(self._groups, self._order, o.result)
        if source is None:
            return {}
        label = self._groups.labels[o.result.name]
        values = {i: o.operands[i] for i in slots if o.operands[i].name in self._arrays}
        return {i: (permuted(self._arrays[v.name], label, source), v.type.quant) for i, v in values.items()}

    def _constant(self, old: Value, array: NDArray[Any], quant: Quant | None, made: list[Op]) -> Value:
        """A constant that holds ``array``: one for all that ask for the same; a new one is appended to ``made``."""
        key = (old.name, array.shape, quant, array.tobytes())
        if key not in self._known:
            name = fresh_name(f"{old.name}.ordered", self._taken)
            self._taken.add(name)
            made.append(constant(name, array, quant=quant))
            self._known[key] = made[-1].result
        return self._known[key]


def _rewired(w: NDArray[Any], rows: Ints | None, columns: Ints | None, groups: int) -> NDArray[Any]:
    """Weights [O, C/groups, ...] whose rows and input channels come from other places, each within its group."""
    if rows is not None:
        w = w[rows]
    if columns is None:
        return w
    width = w.shape[1]
    local = columns.reshape(groups, width) - width * np.arange(groups).reshape(-1, 1)
    each = np.repeat(local, len(w) // groups, axis=0)
    return np.take_along_axis(w, each.reshape(each.shape + (1,) * (w.ndim - 2)), axis=1)


def _scales(value: Value, rows: Ints | None, columns: Ints | None = None) -> Quant | None:
    """The grid of ``value`` when its rows move: per-channel scales and widths go with them.

    Blocks whose columns move no longer share exponents: codes stay what they are, on a grid that has them all.
    """
    grid = value.type.quant
    if grid is not None and columns is not None and isinstance(grid.layout, Blocks):
        grid = grid.plain
    if grid is None or rows is None:
        return grid
    if isinstance(grid.layout, Widths) and grid.layout.axis == 0:
        grid = replace(grid, layout=Widths.of(0, grid.layout.per_index()[rows]))
    return grid if grid.axis != 0 else replace(grid, scale=tuple(grid.scale[int(i)] for i in rows))
