"""Random INTEGER graphs with inputs, reproducible from a seed and an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from qcc.errors import VerifyError
from qcc.ir.graph import Graph, Stage, Value, live
from qcc.ir.types import BATCH
from qcc.ir.verify import verify
from qcc.verify.fuzz_arith import ARITHMETIC
from qcc.verify.fuzz_case import Case
from qcc.verify.fuzz_draw import ROOM, Draw, elements
from qcc.verify.fuzz_move import MOVERS, Maker

MAKERS: Final[Mapping[str, Maker]] = {**MOVERS, **ARITHMETIC}
_KINDS: Final = tuple(MAKERS) + ("iconv2d",) * 5 + ("idense",) * 2 + ("ilinear",) * 2
_ATTEMPTS: Final = 40


def make_case(seed: int, index: int) -> Case:
    """The case ``index`` of the sequence ``seed``: 1 to 6 operations, small shapes, extreme parameters."""
    d = Draw(np.random.default_rng([seed, index]))
    d.input(_first_shape(d))
    wanted = d.between(1, 6)
    for _ in range(_ATTEMPTS):
        if sum(o.kind in MAKERS for o in d.ops) >= wanted:
            break
        _grow(d)
    graph = _finished(d, f"case_{seed}_{index}")
    verify(graph)
    batch = d.between(1, 3)
    inputs = {}
    for v in graph.inputs:
        shape = [batch if n == BATCH else n for n in v.type.shape]
        codes, quant = d.codes(v.type.dtype, shape), v.type.quant
        # A grid may be narrower than its element type, and a session refuses codes beyond it.
        inputs[v.name] = codes if quant is None else codes.clip(quant.qmin, quant.qmax)
    return Case(seed, index, graph, inputs)


def _first_shape(d: Draw) -> tuple[int, ...]:
    if d.chance(0.75):
        channels = d.size()
        side = 12 if channels <= 8 else 6
        return (d.batch, channels, d.between(1, side), d.between(1, side))
    return (d.batch, *(d.size() for _ in range(d.between(1, 2))))


def _grow(d: Draw) -> None:
    """Try one random operation on a random value; what does not fit leaves the graph as it was."""
    before = len(d.ops), len(d.inputs), len(d.values)
    usable = [v for v in d.values if v.type.dtype != "i64" and elements(v) <= ROOM]
    x = usable[-1] if d.chance(0.7) else d.pick(usable)
    try:
        MAKERS[d.pick(_KINDS)](d, x)
    except VerifyError:
        ops, inputs, values = before
        del d.ops[ops:], d.inputs[inputs:], d.values[values:]


def _finished(d: Draw, name: str) -> Graph:
    """Every value that nothing reads is an output; dead constants and inputs go."""
    read = {v.name for o in d.ops for v in o.operands}
    results = [o.result for o in d.ops if o.kind != "constant"]
    outputs: list[Value] = [v for v in results if v.name not in read] or [d.values[0]]
    if results and d.chance(0.1):
        outputs = list(dict.fromkeys([*outputs, d.pick(results)]))
    ops = live(d.ops, outputs)
    used = {v.name for o in ops for v in o.operands} | {v.name for v in outputs}
    return Graph(name, Stage.INTEGER, tuple(v for v in d.inputs if v.name in used), ops, tuple(outputs))
