"""Transposes, and reshapes that only add or drop dimensions of size 1, as maps between axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcc.ir.graph import Attr, Op, Value, constant, op
from qcc_passes.canonical.engine import Scope, infer

Brought = tuple[Value, Sequence[Op]]


@dataclass(frozen=True, slots=True)
class Relayout:
    """How values of rank ``rank`` are laid out anew.

    ``axes`` gives, for each axis of the new layout, the axis of the old one; None for a dimension
    of size 1. ``perm`` is that of a transpose, None for a reshape.
    """

    rank: int
    axes: tuple[int | None, ...]
    perm: tuple[int, ...] | None

    def old_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape in the old layout of what is ``shape`` in the new one; None if it has none."""
        dims = [1] * self.rank
        for axis, dim in zip(self.axes, shape, strict=True):
            if axis is not None:
                dims[axis] = dim
            elif dim != 1:
                return None
        return tuple(dims)

    def result(self, x: Value, result: Value, kept: Sequence[int]) -> Op:
        """The relayout of ``x`` to ``result``, whose axes are the axes ``kept`` of the new layout."""
        if self.perm is None:
            return op("reshape", (x,), (result,), shape=result.type.shape)
        order = [self.perm[a] for a in kept]
        return op("transpose", (x,), (result,), perm=tuple(sorted(order).index(a) for a in order))


def relayout_of(o: Op | None) -> Relayout | None:
    """The relayout that ``o`` performs; None where it is none (a reshape that merges or splits axes)."""
    if o is None or o.kind not in ("transpose", "reshape"):
        return None
    old, new = o.operands[0].type.shape, o.result.type.shape
    if o.kind == "transpose":
        perm = o.ints_attr("perm")
        return Relayout(len(perm), perm, perm)
    if [d for d in old if d != 1] != [d for d in new if d != 1]:
        return None
    sources = iter([a for a, d in enumerate(old) if d != 1])
    return Relayout(len(old), tuple(None if d == 1 else next(sources) for d in new), None)


def transposed(perm: Sequence[int]) -> Relayout:
    return Relayout(len(perm), tuple(perm), tuple(perm))


def inverse(perm: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def bring(v: Value, layout: Relayout, scope: Scope, *, reuse: bool = False) -> Brought | None:
    """``v``, which is in the new layout, in the old one, where that costs nothing at run time.

    Constants are laid out now; a value that the same relayout made is taken from before it; where
    only dimensions of size 1 pass others, a reshape does. With ``reuse``, a transpose back that
    exists already is used once more.
    """
    made = scope.producer(v)
    if made is not None and made.kind == "constant":
        return _bring_constant(made, layout, scope)
    if made is not None and relayout_of(made) == layout:
        return made.operands[0], ()
    if layout.perm is None or v.type.rank != layout.rank:
        return None
    back = inverse(layout.perm)
    wanted = [a for a in back if v.type.shape[a] != 1]
    if wanted == sorted(wanted):
        moved = infer("reshape", (v,), scope.fresh(v.name), shape=tuple(v.type.shape[a] for a in back))
        return moved.result, (moved,)
    if reuse and any(u.kind == "transpose" and u.ints_attr("perm") == back for u in scope.users(v)):
        moved = infer("transpose", (v,), scope.fresh(v.name), perm=back)
        return moved.result, (moved,)
    return None


def _bring_constant(made: Op, layout: Relayout, scope: Scope) -> Brought | None:
    array = made.array
    if array.ndim == 0:
        return made.result, ()
    if array.ndim > len(layout.axes):
        return None
    full = array.reshape((1,) * (len(layout.axes) - array.ndim) + array.shape)
    shape = layout.old_shape(full.shape)
    if shape is None:
        return None
    order = sorted(range(full.ndim), key=lambda a: -1 if (old := layout.axes[a]) is None else old)
    moved = constant(scope.fresh(made.result.name), np.ascontiguousarray(full.transpose(order)).reshape(shape))
    return moved.result, (moved,)


def moved_attrs(o: Op, layout: Relayout) -> dict[str, Attr] | None:
    """The attributes with which ``o`` does in the old layout what it did in the new one; None if it cannot."""
    attrs = dict(o.attrs)
    match o.kind:
        case "concat" | "slice" | "gather" | "softmax" | "argmax":
            axis = layout.axes[o.int_attr("axis")]
            return None if axis is None else {**attrs, "axis": axis}
        case "reduce_mean" | "reduce_sum" | "reduce_max":
            axes = [layout.axes[a] for a in o.ints_attr("axes")]
            known = tuple(sorted(a for a in axes if a is not None))
            return {**attrs, "axes": known} if len(known) == len(axes) else None
        case "pad":
            return _moved_pads(o, layout)
        case _:
            return attrs


def _moved_pads(o: Op, layout: Relayout) -> dict[str, Attr] | None:
    pads, rank, values = o.ints_attr("pads"), len(layout.axes), o.floats_attr("values")
    moved = [0] * (2 * layout.rank)
    for new, old in enumerate(layout.axes):
        if old is not None:
            moved[old], moved[old + layout.rank] = pads[new], pads[new + rank]
        elif pads[new] or pads[new + rank]:
            return None
    if len(values) > 1 and layout.axes[1] != 1:
        return None
    return {"pads": tuple(moved), "values": values}
