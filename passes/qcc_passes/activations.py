"""Where activations can be narrowed: values that share a grid, and a graph in which they lie on one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.build import infer
from qcc.ir.graph import Graph, Op, Stage, Value, constants
from qcc.ir.types import Quant
from qcc_passes.facts import Ranges
from qcc_passes.quantize_grids import MOVES, grid_classes

Array = NDArray[Any]

EXACT: Final = ".exact"
"""Ends the name that a value has before it is snapped."""


@dataclass(frozen=True, slots=True)
class Site:
    """Activations that share one grid, named after the first of them.

    ``values`` are all of them; ``roots`` are those that are computed, not moved, so that rounding
    these rounds all. ``elements`` counts the roots' elements per sample.
    """

    name: str
    values: tuple[str, ...]
    roots: tuple[str, ...]
    elements: int


def activation_sites(graph: Graph) -> tuple[Site, ...]:
    """The sites of a FLOAT graph whose bits may be chosen: not its inputs, nor what only leaves it (an analysis)."""
    fixed = {v.name for v in graph.inputs} | set(constants(graph))
    moved = {o.result.name for o in graph.ops if o.kind in MOVES}
    found = []
    for members in grid_classes(graph):
        names = tuple(v.name for v in members.values if v.name not in fixed)
        if members.wide or not names or any(v.name in fixed for v in members.values):
            continue
        roots = [v for v in members.values if v.name not in moved]
        if roots:
            elements = sum(int(np.prod(v.type.shape[1:])) for v in roots)
            found.append(Site(names[0], names, tuple(v.name for v in roots), elements))
    return tuple(found)


def fit(site: Site, ranges: Ranges, bits: int) -> Quant:
    """The grid of ``bits`` bits that calibration gives the site. Raises PassError when it was not observed."""
    return ranges.choose(site.values, bits)


def on_grid(array: Array, quant: Quant) -> Array:
    """``array`` snapped to ``quant``."""
    snapped: Array = quant.dequantize(quant.quantize(array)).astype(np.float32)
    return snapped


def snapped(graph: Graph, grids: Mapping[str, Quant]) -> Graph:
    """``graph``, still at stage FLOAT, with the values that ``grids`` names rounded to their grids.

    A value keeps its name after the rounding; before it, the name ends in ``EXACT``.
    """
    ops: list[Op] = []
    for o in graph.ops:
        if (quant := grids.get(o.result.name)) is None:
            ops.append(o)
            continue
        exact = Value(f"{o.result.name}{EXACT}", o.result.type)
        ops.append(replace(o, results=(exact,)))
        ops.append(infer(Stage.FLOAT, "map", [exact], o.result.name, {"fn": _expression(quant)}, None, None))
    return replace(graph, ops=tuple(ops))


def _expression(quant: Quant) -> str:
    """Rounding to a per-tensor grid as an expression of x."""
    scale, zero = float(quant.scale[0]), quant.zero_point
    low, high = (float(q - zero) for q in (quant.qmin, quant.qmax))
    return f"mul(min(max(round(mul(x, {1 / scale!r})), {low!r}), {high!r}), {scale!r})"
