"""Walking a QUANTIZED graph layer by layer on calibration data, fp32 and quantized side by side.

Both sides see the same samples; a value is dropped after its last reader, and quantized ones are
held as codes, so a sweep costs the memory of the widest cut through the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph, Op, Value, rewrite
from qcc.verify.interp import evaluate_op

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation about to run: its operands as reals, in fp32 and on their grids."""

    op: Op
    exact: tuple[Array, ...]
    quantized: tuple[Array, ...]


Revise = Callable[[Step], Sequence[Op]]
"""New ``constant`` operations in place of those that the step reads, by name; none leaves it as it is."""


def sweep(graph: Graph, inputs: Mapping[str, Array], revise: Revise) -> Graph:
    """Run every operation in order; ``revise`` may replace the constants that it reads.

    Later operations see what the revised ones compute. Constants that several operations read
    change for all that follow. Returns the graph with its revised constants.
    """
    changed: dict[str, Op] = {}
    for step, commit in _steps(graph, inputs):
        new = {o.result.name: o for o in revise(step)}
        changed |= new
        commit(new)
    return rewrite(graph, lambda o: [changed[o.result.name]] if o.result.name in changed else None)


Commit = Callable[[Mapping[str, Op]], None]


def _steps(graph: Graph, inputs: Mapping[str, Array]) -> Iterator[tuple[Step, Commit]]:
    last = {v.name: i for i, o in enumerate(graph.ops) for v in o.operands}
    exact: dict[str, Array] = dict(inputs)
    codes: dict[str, Array] = {v.name: _pack(v, inputs[v.name]) for v in graph.inputs}
    types = {v.name: v for v in (*graph.inputs, *(o.result for o in graph.ops))}
    for index, o in enumerate(graph.ops):
        if o.kind == "constant":
            exact[o.result.name] = o.array
            codes[o.result.name] = _pack(o.result, o.array)
            continue
        step = Step(
            o,
            tuple(exact[v.name] for v in o.operands),
            tuple(_unpack(types[v.name], codes[v.name]) for v in o.operands),
        )

        def commit(new: Mapping[str, Op], step: Step = step) -> None:
            for name, revised in new.items():
                types[name] = revised.result
                codes[name] = _pack(revised.result, revised.array)
            seen = replace(step.op, operands=tuple(types[v.name] for v in step.op.operands))
            operands = [_unpack(v, codes[v.name]) for v in seen.operands]
            codes[step.op.result.name] = _pack(step.op.result, evaluate_op(seen, operands))
            exact[step.op.result.name] = evaluate_op(unquantized(step.op), step.exact)

        yield step, commit
        for v in o.operands:
            if last[v.name] == index:
                exact.pop(v.name, None)
                codes.pop(v.name, None)


def unquantized(o: Op) -> Op:
    """The same operation on real values: no operand or result lies on a grid."""
    return replace(
        o,
        operands=tuple(v.typed(quant=None) for v in o.operands),
        results=tuple(v.typed(quant=None) for v in o.results),
    )


def _pack(value: Value, real: Array) -> Array:
    """Codes where the value has a grid of at most 16 bits: a quarter of the memory, and nothing lost."""
    quant = value.type.quant
    return quant.quantize(real) if quant is not None and quant.bits <= 16 else np.asarray(real)


def _unpack(value: Value, stored: Array) -> Array:
    quant = value.type.quant
    return quant.dequantize(stored) if quant is not None and quant.bits <= 16 else stored
