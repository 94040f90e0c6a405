"""Data movement that moves nothing, or that two operations do where one would do."""

from __future__ import annotations

from typing import Final

from qcc.ir.graph import Op, Value, op
from qcc_passes.canonical.engine import Answer, Rule, Scope, infer, on


@on("reshape", "transpose", "slice", "pad", "gather", "dilate2d", "concat", "max_pool2d")
def drop_idle_movement(o: Op, scope: Scope) -> Answer:
    """Movement that leaves every element where it is.

    A reshape that merely gives an input, or another output, the name of an output has to stay.
    """
    x = o.operands[0]
    if not _is_idle(o):
        return None
    if scope.is_output(o.result) and (scope.is_input(x) or scope.is_output(x)):
        return None if o.kind == "reshape" else [op("reshape", (x,), o.results, shape=x.type.shape)]
    return x


def _is_idle(o: Op) -> bool:
    x = o.operands[0].type
    match o.kind:
        case "reshape":
            return x.shape == o.ints_attr("shape")
        case "transpose":
            return o.ints_attr("perm") == tuple(range(x.rank))
        case "slice":
            whole = (0, x.shape[o.int_attr("axis")], 1)
            return tuple(o.int_attr(k) for k in ("start", "stop", "step")) == whole
        case "pad":
            return not any(o.ints_attr("pads"))
        case "gather":
            return o.ints_attr("indices") == tuple(range(x.shape[o.int_attr("axis")]))
        case "dilate2d":
            return o.ints_attr("factors") == (1, 1)
        case "concat":
            return len(o.operands) == 1
        case _:
            window = o.ints_attr("kernel"), o.ints_attr("strides")
            return window == ((1, 1), (1, 1)) and not any(o.ints_attr("pads"))


@on("reshape")
def merge_reshapes(o: Op, scope: Scope) -> Answer:
    """Of two reshapes in a row only the last counts."""
    before = scope.producer(o.operands[0], "reshape")
    return None if before is None else [op("reshape", before.operands, o.results, **o.attrs)]


@on("transpose")
def merge_transposes(o: Op, scope: Scope) -> Answer:
    """Two transposes in a row are one."""
    before = scope.producer(o.operands[0], "transpose")
    if before is None:
        return None
    first = before.ints_attr("perm")
    return [op("transpose", before.operands, o.results, perm=tuple(first[p] for p in o.ints_attr("perm")))]


@on("transpose")
def transpose_to_reshape(o: Op, scope: Scope) -> Answer:
    """A transpose that carries only dimensions of size 1 past others reorders no element."""
    (x,) = o.operands
    moved = [p for p in o.ints_attr("perm") if x.type.shape[p] != 1]
    if moved != sorted(moved):
        return None
    return [op("reshape", (x,), o.results, shape=o.result.type.shape)]


@on("slice")
def merge_slices(o: Op, scope: Scope) -> Answer:
    """A slice of a slice along the same axis is one slice."""
    before = scope.producer(o.operands[0], "slice")
    if before is None or before.int_attr("axis") != o.int_attr("axis"):
        return None
    start, step = before.int_attr("start"), before.int_attr("step")
    first = start + o.int_attr("start") * step
    last = start + (o.int_attr("stop") - 1) * step
    attrs = {"axis": o.int_attr("axis"), "start": first, "stop": last + 1, "step": step * o.int_attr("step")}
    return [op("slice", before.operands, o.results, **attrs)]


@on("pad")
def merge_pads(o: Op, scope: Scope) -> Answer:
    """Two paddings in a row with the same values are one."""
    before = scope.producer(o.operands[0], "pad")
    if before is None:
        return None
    if before.attrs["values"] != o.attrs["values"]:
        return scope.keep(o, f"{before} pads with other values")
    pads = tuple(p + q for p, q in zip(before.ints_attr("pads"), o.ints_attr("pads"), strict=True))
    return [op("pad", before.operands, o.results, pads=pads, values=o.attrs["values"])]


@on("gather")
def gather_to_slice(o: Op, scope: Scope) -> Answer:
    """A gather of evenly spaced, rising indices is a slice."""
    indices = o.ints_attr("indices")
    step = indices[1] - indices[0] if len(indices) > 1 else 1
    if step < 1 or indices != tuple(range(indices[0], indices[-1] + 1, step)):
        return None
    attrs = {"axis": o.int_attr("axis"), "start": indices[0], "stop": indices[-1] + 1, "step": step}
    return [op("slice", o.operands, o.results, **attrs)]


@on("concat")
def flatten_concats(o: Op, scope: Scope) -> Answer:
    """concat(concat(a, b), c) → concat(a, b, c), when nobody else reads the inner one."""
    axis = o.int_attr("axis")
    parts: list[Value] = []
    for v in o.operands:
        inner = scope.sole_producer(v, "concat")
        nested = inner is not None and inner.int_attr("axis") == axis
        parts += inner.operands if inner is not None and nested else (v,)
    if len(parts) == len(o.operands):
        return None
    return [op("concat", parts, o.results, axis=axis)]


@on("reduce_mean", "reduce_sum", "reduce_max")
def reduce_single_elements(o: Op, scope: Scope) -> Answer:
    """A reduction over axes of size 1 only changes the shape."""
    (x,) = o.operands
    if any(x.type.shape[a] != 1 for a in o.ints_attr("axes")):
        return None
    shape = o.result.type.shape
    clamp = {k: o.attrs[k] for k in ("lo", "hi") if k in o.attrs}
    if not clamp:
        return [op("reshape", (x,), o.results, shape=shape)]
    moved = infer("reshape", (x,), scope.fresh(x.name), shape=shape)
    return [moved, op("clip", (moved.result,), o.results, **clamp)]


RULES: Final[tuple[Rule, ...]] = (
    drop_idle_movement,
    merge_reshapes,
    merge_transposes,
    transpose_to_reshape,
    merge_slices,
    merge_pads,
    gather_to_slice,
    flatten_concats,
    reduce_single_elements,
)
