"""Layout changes travel: those at graph inputs stay there, all others sink until they meet and cancel."""

from __future__ import annotations

from typing import Final

import numpy as np

from qcc.ir.graph import Op, Value, constant, op
from qcc_passes.canonical.affine import weights
from qcc_passes.canonical.engine import Answer, Rule, Scope, infer, on
from qcc_passes.canonical.relayout import bring, inverse, moved_attrs, relayout_of, transposed

ELEMENTWISE: Final = ("clip", "map", "add", "sub", "mul", "div")
_AXISWISE: Final = ("concat", "slice", "gather", "pad", "softmax", "argmax", "reduce_mean", "reduce_sum", "reduce_max")


@on(*ELEMENTWISE, *_AXISWISE)
def sink_relayout(o: Op, scope: Scope) -> Answer:
    """op(relayout(a), relayout(b), constant) → relayout(op(a, b, constant relaid))."""
    made = [scope.producer(v) for v in o.operands]
    layouts = [(m, found) for m in made if m is not None and (found := relayout_of(m)) is not None]
    if not layouts:
        return None
    if all(m.kind == "transpose" and _reaches_input(m.operands[0], scope) for m, _ in layouts):
        return scope.keep(o, "a transpose that can rise to a graph input does not sink")
    layout = layouts[0][1]
    if o.kind in ELEMENTWISE and o.result.type.rank != len(layout.axes):
        return scope.keep(o, "it broadcasts the value whose layout changes")
    attrs = moved_attrs(o, layout)
    reuse = all(_vanishes(m, o, scope) for m, _ in layouts)
    operands = [bring(v, layout, scope, reuse=reuse) for v in o.operands]
    if attrs is None or any(b is None for b in operands):
        return scope.keep(o, f"it cannot work in the layout before {layouts[0][0]}")
    brought = [b for b in operands if b is not None]
    inner = infer(o.kind, [v for v, _ in brought], scope.fresh(o.result.name), **attrs)
    dropped = (
        o.ints_attr("axes") if o.kind.startswith("reduce") else (o.int_attr("axis"),) if o.kind == "argmax" else ()
    )
    keeps = not dropped or o.bool_attr("keepdims")
    kept = [a for a in range(len(layout.axes)) if keeps or a not in dropped]
    return [*(step for _, steps in brought for step in steps), inner, layout.result(inner.result, o.result, kept)]


def _vanishes(transpose: Op, user: Op, scope: Scope) -> bool:
    """Whether nothing like ``transpose`` is left once ``user`` no longer needs it."""
    (x,) = transpose.operands
    alike = [u for u in scope.users(x) if (u.kind, u.attrs) == (transpose.kind, transpose.attrs)]
    return len(alike) == 1 and x not in user.operands and scope.sole_producer(transpose.result) is not None


@on(*ELEMENTWISE)
def sink_reshape(o: Op, scope: Scope) -> Answer:
    """op(reshape(a), reshape(b), scalar) → reshape(op(a, b, scalar)), a and b of one shape."""
    sources: list[Value] = []
    shapes: set[tuple[int, ...]] = set()
    for v in o.operands:
        value = scope.constant(v)
        reshape = scope.producer(v, "reshape")
        if value is not None and value.size == 1 and value.ndim <= 1:
            sources.append(v)
        elif reshape is not None and v.type.shape == o.result.type.shape:
            sources.append(reshape.operands[0])
            shapes.add(reshape.operands[0].type.shape)
        else:
            return None
    if len(shapes) != 1:
        return None
    inner = infer(o.kind, sources, scope.fresh(o.result.name), **o.attrs)
    return [inner, op("reshape", (inner.result,), o.results, shape=o.result.type.shape)]


@on("transpose")
def raise_to_input(o: Op, scope: Scope) -> Answer:
    """transpose(op(…(input))) → op(transpose(…(input))), so that constants of ``op`` may fold onward."""
    (x,) = o.operands
    step = scope.producer(x, *ELEMENTWISE, "pad", "slice")
    if step is None or not _reaches_input(x, scope) or (source := _variable(step, scope)) is None:
        return None
    if all(u.kind == "reshape" for u in scope.users(o.result)):
        return scope.keep(o, "a flattening after it may turn it into an order of columns")
    perm = o.ints_attr("perm")
    back = transposed(inverse(perm))
    attrs = moved_attrs(step, back)
    if attrs is None:
        return scope.keep(o, f"{step} cannot work in another layout")
    first = infer("transpose", (source,), scope.fresh(source.name), perm=perm)
    steps: list[Op] = [first]
    operands: list[Value] = []
    for v in step.operands:
        brought = (first.result, ()) if v.name == source.name else bring(v, back, scope)
        if brought is None:
            return scope.keep(o, f"{step} cannot work in another layout")
        operands.append(brought[0])
        steps += brought[1]
    return [*steps, op(step.kind, operands, o.results, **attrs)]


def _variable(o: Op, scope: Scope) -> Value | None:
    """The only operand of ``o`` that is not constant."""
    names = {v.name: v for v in o.operands if scope.constant(v) is None}
    return next(iter(names.values())) if len(names) == 1 else None


def _reaches_input(v: Value, scope: Scope) -> bool:
    """Whether ``v`` is a graph input, or made from one by steps that a transpose can pass."""
    for _ in range(len(scope.graph.ops) + 1):
        if scope.is_input(v):
            return True
        made = scope.sole_producer(v, *ELEMENTWISE, "pad", "slice", "transpose")
        source = None if made is None else _variable(made, scope)
        if made is None or source is None or source.type.rank != v.type.rank:
            return False
        if made.kind == "pad" and len(made.floats_attr("values")) > 1:
            return False
        v = source
    return False


@on("dense")
def absorb_transpose_into_dense(o: Op, scope: Scope) -> Answer:
    """dense(flatten(transpose(x))) → dense(flatten(x)) with the columns of the weights in x's order."""
    x = o.operands[0]
    reshape = scope.producer(x, "reshape")
    transpose = None if reshape is None else scope.producer(reshape.operands[0], "transpose")
    known = weights(o, scope)
    if transpose is None or known is None:
        return None
    perm, mixed = transpose.ints_attr("perm"), transpose.result.type.shape
    if x.type.rank != 2 or perm[0] != 0 or mixed[0] != x.type.shape[0]:
        return scope.keep(o, f"{reshape} does not flatten all that {transpose} moves")
    w = scope.constant(o.operands[1])
    if w is None:
        return None
    columns = np.ascontiguousarray(w.reshape(-1, *mixed[1:]).transpose(inverse(perm))).reshape(w.shape)
    new_w = constant(scope.fresh(o.operands[1].name), columns)
    flat = infer("reshape", transpose.operands, scope.fresh(x.name), shape=x.type.shape)
    return [new_w, flat, op("dense", (flat.result, new_w.result, *o.operands[2:]), o.results, **o.attrs)]


RULES: Final[tuple[Rule, ...]] = (sink_relayout, sink_reshape, raise_to_input, absorb_transpose_into_dense)
