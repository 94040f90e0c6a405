"""Shrinking: the smallest case that still fails, found by greedy simplification."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import QccError
from qcc.ir.graph import Graph, Op, Value, constant, constants, live
from qcc.ir.opset import OPSET
from qcc.ir.types import BATCH
from qcc.ir.verify import verify
from qcc.verify.fuzz_case import Case
from qcc.verify.fuzz_layers import simpler_layers
from qcc.verify.interp import evaluate

Array = NDArray[Any]
Fails = Callable[[Case], bool]

_ATTEMPTS: Final = 400


def shrink(case: Case, fails: Fails) -> Case:
    """A case no larger than ``case`` that still fails, after at most a few hundred attempts.

    Outputs are dropped, then operations before and after the failing one, then batch and dimensions.
    """
    attempts = 0
    progress = True
    while progress and attempts < _ATTEMPTS:
        progress = False
        for candidate in _simpler(case):
            attempts += 1
            if attempts > _ATTEMPTS:
                break
            if _holds(candidate, fails):
                case, progress = candidate, True
                break
    return case


def _holds(case: Case, fails: Fails) -> bool:
    try:
        verify(case.graph)
        return fails(case)
    except QccError:  # the simplification made a graph that does not stand, or cannot be run
        return False


def _simpler(case: Case) -> Iterator[Case]:
    yield from _earlier_outputs(case)
    yield from _later_inputs(case)
    yield from _smaller_batch(case)
    yield from _shorter_axes(case)
    yield from simpler_layers(case)
    yield from _plainer_inputs(case)


def _trimmed(case: Case, outputs: Sequence[Value]) -> Case:
    """``case`` with these outputs only, and without what they do not need."""
    graph = case.graph
    ops = live(graph.ops, outputs)
    used = {v.name for o in ops for v in o.operands} | {v.name for v in outputs}
    inputs = tuple(v for v in graph.inputs if v.name in used)
    kept = {v.name: case.inputs[v.name] for v in inputs}
    return replace(case, graph=replace(graph, inputs=inputs, ops=ops, outputs=tuple(outputs)), inputs=kept)


def _earlier_outputs(case: Case) -> Iterator[Case]:
    """One output, as early in the graph as possible."""
    results = [o.result for o in case.graph.ops if o.kind != "constant"]
    for value in results:
        candidate = _trimmed(case, [value])
        if len(candidate.graph.ops) < len(case.graph.ops) or len(case.graph.outputs) > 1:
            yield candidate


def _later_inputs(case: Case) -> Iterator[Case]:
    """Values become inputs that carry what the reference computes, so that their makers go."""
    graph = case.graph
    inner = [o.result for o in graph.ops if o.kind != "constant" and o.result not in graph.outputs]
    if not inner:
        return
    known = evaluate(graph, case.inputs, keep=[v.name for v in inner])
    for value in reversed(inner):
        ops = tuple(o for o in graph.ops if o.result.name != value.name)
        moved = replace(graph, inputs=(*graph.inputs, value), ops=ops)
        yield _trimmed(replace(case, graph=moved, inputs={**case.inputs, value.name: known[value.name]}), graph.outputs)


def _smaller_batch(case: Case) -> Iterator[Case]:
    batched = [v.name for v in case.graph.inputs if v.type.shape[:1] == (BATCH,)]
    size = len(case.inputs[batched[0]]) if batched else 1
    if size > 1:
        for at in range(size):
            yield replace(case, inputs={k: a[at : at + 1] if k in batched else a for k, a in case.inputs.items()})


def _shorter_axes(case: Case) -> Iterator[Case]:
    """Inputs of fewer elements along one axis, with every shape inferred anew, and weights cut to match."""
    for value in case.graph.inputs:
        for axis, size in enumerate(value.type.shape):
            for shorter in sorted({size // 2, size - 1} - {0}) if size > 1 else ():
                if (made := _resized(case, value, axis, shorter)) is not None:
                    yield made


def _resized(case: Case, value: Value, axis: int, size: int) -> Case | None:
    shape = tuple(size if a == axis else n for a, n in enumerate(value.type.shape))
    part = np.take(case.inputs[value.name], range(size), axis=axis)
    arrays = constants(case.graph)
    env = {v.name: v for v in case.graph.inputs} | {value.name: value.typed(shape=shape)}
    ops: list[Op] = []
    try:
        for o in case.graph.ops:
            for made in _refitted(o, env, arrays):
                env[made.result.name] = made.result
                ops.append(made)
        graph = Graph(
            case.graph.name,
            case.graph.stage,
            tuple(env[v.name] for v in case.graph.inputs),
            live(ops, [env[v.name] for v in case.graph.outputs]),
            tuple(env[v.name] for v in case.graph.outputs),
        )
    except (QccError, IndexError, ValueError):  # the other operands or attributes do not follow this axis
        return None
    return replace(case, graph=graph, inputs={**case.inputs, value.name: part})


def _refitted(o: Op, env: Mapping[str, Value], arrays: Mapping[str, Array]) -> list[Op]:
    """``o`` over operands of other shapes; weights lose the input channels or features that are gone."""
    operands = [env[v.name] for v in o.operands]
    extra: list[Op] = []
    axis = {"iconv2d": 1, "idense": -1}.get(o.kind)
    if axis is not None and operands[1].name in arrays:
        depth = operands[0].type.shape[axis] // (o.int_attr("groups") if o.kind == "iconv2d" else 1)
        w = arrays[operands[1].name]
        if w.shape[1] != depth:
            extra.append(constant(f"{operands[1].name}.cut", w[:, :depth], quant=operands[1].type.quant))
            operands[1] = extra[0].result
    made = replace(o, operands=tuple(operands))
    result = o.result.typed(shape=OPSET[o.kind].shape(made))
    return [*extra, replace(made, results=(result,))]


def _plainer_inputs(case: Case) -> Iterator[Case]:
    """Inputs with all codes at the zero point, then with one half of them."""
    for v in case.graph.inputs:
        codes, zero = case.inputs[v.name], v.type.quant.zero_point if v.type.quant is not None else 0
        busy = np.flatnonzero(codes != zero)
        for part in (busy, busy[: len(busy) // 2], busy[len(busy) // 2 :]):
            if len(part) and (len(part) < len(busy) or part is busy):
                plain = codes.copy()
                plain.flat[part] = zero
                yield replace(case, inputs={**case.inputs, v.name: plain})
