"""What the users of each value ask of its place in memory (analyses over the graph)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from qcc.ir.graph import Graph, Op
from qcc.ir.types import TensorType
from qcc_targets.cpu.kernel import Halo

WINDOWED: Final = frozenset({"iconv2d", "max_pool2d", "isum_pool2d"})
"""Operations that slide a window and read a halo instead of checking bounds."""

SPATIAL: Final = WINDOWED | {"iresize_linear", "dilate2d"}
"""Operations whose operand and result lie channels-last."""


CONTRACTIONS: Final = frozenset({"iconv2d", "idense", "imatmul"})
"""Sums of products; their kernels read whole vectors of every operand."""


@dataclass(frozen=True, slots=True)
class Border:
    """A halo and the code that it must hold."""

    halo: Halo
    fill: int


NO_BORDER: Final = Border(Halo(), 0)


def zero_point(type_: TensorType) -> int:
    return type_.quant.zero_point if type_.quant else 0


def window_border(o: Op) -> Border:
    """The border that a windowed operation reads around its first operand.

    A maximum ignores its padding: the fill is the lowest code of the element type.
    """
    x = o.operands[0].type
    kernel = o.ints_attr("kernel") if "kernel" in o.attrs else o.operands[1].type.shape[2:]
    top, left, _, _ = o.ints_attr("pads")
    ends = []
    for axis, begin in enumerate((top, left)):
        steps = (o.result.type.shape[2 + axis] - 1) * o.ints_attr("strides")[axis]
        reach = steps + (kernel[axis] - 1) * o.ints_attr("dilations")[axis] + 1
        ends.append(max(0, reach - begin - x.shape[2 + axis]))
    fill = int(np.iinfo(x.numpy).min) if o.kind == "max_pool2d" else zero_point(x)
    return Border(Halo(top, left, *ends), fill)


def halos(graph: Graph) -> dict[str, Halo]:
    """The halo that each value should carry, filled with its zero point, by value name.

    A channel slice hands its users' wishes to the tensor that it is cut from, and an operand of a
    channel concatenation shares the storage of the whole.
    """
    wanted: dict[str, Halo] = {}

    def want(name: str, halo: Halo) -> None:
        wanted[name] = wanted.get(name, Halo()).union(halo)

    for o in reversed(graph.ops):
        if o.kind in WINDOWED:
            border = window_border(o)
            if border.fill == zero_point(o.operands[0].type):
                want(o.operands[0].name, border.halo)
        elif o.kind == "slice" and o.int_attr("axis") == 1 and o.int_attr("step") == 1 and o.result.name in wanted:
            want(o.operands[0].name, wanted[o.result.name])
    for o in graph.ops:
        if o.kind == "concat" and o.int_attr("axis") == 1:
            for v in o.operands:
                if v.name in wanted:
                    want(o.result.name, wanted[v.name])
    return wanted


@dataclass(frozen=True, slots=True)
class Slot:
    """Where in the result of a concatenation an operand begins, along ``axis``."""

    whole: str
    axis: int
    start: int


def slots(graph: Graph) -> Mapping[str, Slot]:
    """The place inside a concatenation that a value's producer may write to directly, by value name.

    The first concatenation that takes a value gets it; the value must occur in it once. Halos
    survive only along channels, so a value that wants one is placed in no other concatenation.
    """
    table: dict[str, Slot] = {}
    wanted = halos(graph)
    produced = {o.result.name for o in graph.ops if o.kind not in ("constant", "transpose", "reshape", "slice")}
    for o in graph.ops:
        if o.kind != "concat":
            continue
        axis, start = o.int_attr("axis"), 0
        names = [v.name for v in o.operands]
        for v in o.operands:
            free = v.name in produced and v.name not in table and names.count(v.name) == 1
            if free and (axis == 1 or v.name not in wanted):
                table[v.name] = Slot(o.result.name, axis, start)
            start += v.type.shape[axis]
    return table
