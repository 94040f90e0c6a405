"""Which values must share a grid, and which of these classes may stay 32 bits wide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import networkx as nx

from qcc.ir.graph import Graph, Op, Value, users

MOVES: Final = frozenset(
    {"concat", "max_pool2d", "reshape", "slice", "pad", "gather", "transpose", "reduce_max", "dilate2d"}
)
"""Operations that move codes or choose among them: operands and result lie on one grid."""

_NARROW_MOVES: Final = frozenset({"max_pool2d"})
"""Moves that not every runtime has for 32-bit codes."""

_WIDE_READERS: Final = frozenset({"argmax"})
"""Operations, besides moves, that read 32-bit codes."""


_AVERAGES: Final = frozenset({"reduce_mean", "reduce_sum", "avg_pool2d"})

_LARGEST_WEIGHT: Final = 128


@dataclass(frozen=True, slots=True)
class GridClass:
    """Values that share one grid, in definition order.

    ``seen`` are those that something other than a move reads, or that leave the graph: their
    distribution is what the grid should fit. ``wide`` classes are read by nothing but the outside
    (and argmax), so they need not be narrowed to 8 bits.
    """

    values: tuple[Value, ...]
    seen: tuple[str, ...]
    wide: bool


def grid_classes(graph: Graph) -> tuple[GridClass, ...]:
    """The classes of all real activations of ``graph``, in definition order of their first values.

    A constant belongs to one when a move reads it.
    """
    coupling: nx.Graph[str] = nx.Graph()
    values = {v.name: v for v in graph.inputs}
    for o in graph.ops:
        values[o.result.name] = o.result
        if o.kind != "constant" and o.result.type.dtype == "f32":
            coupling.add_node(o.result.name)
            if o.kind in MOVES:
                coupling.add_edges_from((v.name, o.result.name) for v in o.operands)
    coupling.add_nodes_from(v.name for v in graph.inputs if v.type.dtype == "f32")
    order = {name: i for i, name in enumerate(values)}
    members = (sorted(c, key=order.__getitem__) for c in nx.connected_components(coupling))
    table = users(graph)
    outputs = {v.name for v in graph.outputs}
    return tuple(
        _grid_class([values[n] for n in names], table, outputs)
        for names in sorted(members, key=lambda names: order[names[0]])
    )


def _grid_class(values: list[Value], table: Mapping[str, list[Op]], outputs: Iterable[str]) -> GridClass:
    names = {v.name for v in values}
    readers = [(v.name, o) for v in values for o in table[v.name]]
    leaving = names & set(outputs)
    seen = leaving | {name for name, o in readers if o.kind not in MOVES}
    kinds = {o.kind for _, o in readers}
    wide = bool(leaving or kinds & _WIDE_READERS) and kinds <= (MOVES | _WIDE_READERS) - _NARROW_MOVES
    return GridClass(tuple(values), tuple(v.name for v in values if v.name in seen), wide)


def summed_bits(graph: Graph, members: GridClass) -> int | None:
    """How many unsigned bits, 16 at most, a class may have so that all that reads it still sums in int32.

    None where something else than an average, a convolution or a dense layer reads it (these as their
    input), or where it leaves the graph.
    """
    names = {v.name for v in members.values}
    if names & {v.name for v in graph.outputs}:
        return None
    bits = 16
    readers = [o for o in graph.ops if o.kind not in MOVES and any(v.name in names for v in o.operands)]
    for o in readers:
        if any(v.name in names for v in o.operands[1:]):
            return None
        if o.kind in ("conv2d", "dense"):
            largest = _LARGEST_WEIGHT * math.prod(o.operands[1].type.shape[1:])
        elif o.kind in _AVERAGES:
            largest = _window(o)
        else:
            return None
        bits = min(bits, ((1 << 31) // largest).bit_length() - 1)
    return bits if readers else None


def is_cheap_to_widen(graph: Graph, members: GridClass) -> bool:
    """Whether more than 8 bits cost next to nothing: what averages make or read, where every code stands for many.

    Pooled features are few and each stands for a whole map, so 8 bits lose the most just there; what only
    averages read is summed without a product.
    """
    names = {v.name for v in members.values}
    if names & {v.name for v in graph.inputs}:
        return False
    made = {o.kind for o in graph.ops if o.result.name in names} - MOVES
    read = {o.kind for o in graph.ops if any(v.name in names for v in o.operands)} - MOVES
    return bool(made and made <= _AVERAGES and read <= {"dense"}) or bool(read and read <= _AVERAGES)


def _window(o: Op) -> int:
    """How many elements an average sums."""
    if o.kind == "avg_pool2d":
        return math.prod(o.ints_attr("kernel"))
    return math.prod(abs(o.operands[0].type.shape[axis]) for axis in o.ints_attr("axes"))
