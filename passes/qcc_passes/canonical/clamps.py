"""Clamps and residual additions become attributes and operands of the arithmetic that feeds them."""

from __future__ import annotations

import math
from typing import Final

from qcc.ir.graph import Attr, Op, op
from qcc_passes.canonical.affine import clamp_of
from qcc_passes.canonical.engine import Answer, Rule, Scope, infer, on

CLAMPABLE: Final = (
    "conv2d", "dense", "add", "sub", "mul", "avg_pool2d", "reduce_mean", "reduce_sum", "resize_linear", "clip",
)  # fmt: skip


def bounds(o: Op) -> tuple[float, float]:
    """The clamp of ``o``; infinite where it has none."""
    return o.float_attr("lo", -math.inf), o.float_attr("hi", math.inf)


def clamp_attrs(lo: float, hi: float) -> dict[str, Attr]:
    limits: dict[str, Attr] = {}
    if lo > -math.inf:
        limits["lo"] = lo
    if hi < math.inf:
        limits["hi"] = hi
    return limits


def composed(first: Op, second: Op) -> dict[str, Attr]:
    """The attributes of the one clamp that equals ``first``'s followed by ``second``'s."""
    lo, hi = bounds(second)
    low, high = (min(max(bound, lo), hi) for bound in bounds(first))
    return clamp_attrs(low, high)


@on("clip")
def fuse_clip(o: Op, scope: Scope) -> Answer:
    """clip(conv(x)) and its like: the clamp becomes the convolution's own."""
    (x,) = o.operands
    if (made := scope.producer(x, *CLAMPABLE)) is None:
        return None
    if scope.sole_producer(x) is None and made.kind != "clip":
        return scope.keep(o, f"%{x.name} has other users")
    attrs = {k: a for k, a in made.attrs.items() if k not in ("lo", "hi")}
    return [op(made.kind, made.operands, o.results, **attrs, **composed(made, o))]


@on("clip")
def hoist_clip_over_max_pool(o: Op, scope: Scope) -> Answer:
    """clip(max_pool(x)) → max_pool(clip(x)): a maximum of clamped values is the clamped maximum."""
    (x,) = o.operands
    pool = scope.sole_producer(x, "max_pool2d")
    if pool is None or scope.sole_producer(pool.operands[0], *CLAMPABLE) is None:
        return None
    clip = infer("clip", pool.operands, scope.fresh(x.name), **o.attrs)
    return [clip, op("max_pool2d", (clip.result,), o.results, **pool.attrs)]


@on("clip")
def hoist_clip_over_concat(o: Op, scope: Scope) -> Answer:
    """clip(concat(a, b, …)) → concat(clip(a), clip(b), …), when every part can take its clamp in."""
    (x,) = o.operands
    concat = scope.sole_producer(x, "concat")
    if concat is None:
        return None
    if any(scope.sole_producer(v, *CLAMPABLE) is None for v in concat.operands):
        return scope.keep(o, f"not every part of {concat} can take the clamp in")
    clips = [infer("clip", (v,), scope.fresh(v.name), **o.attrs) for v in concat.operands]
    return [*clips, op("concat", [c.result for c in clips], o.results, **concat.attrs)]


@on("add")
def fuse_residual(o: Op, scope: Scope) -> Answer:
    """conv(x) + r → conv(x, r): one rounding instead of two.

    Where both branches end in a convolution that could take the other in, the one computed last
    does, so that its accumulator is not stored at all.
    """
    a, b = o.operands
    if a.name == b.name or a.type != o.result.type or b.type != o.result.type:
        return None
    if scope.constant(a) is not None or scope.constant(b) is not None:
        return None
    for x, r in sorted(((a, b), (b, a)), key=lambda pair: scope.place(pair[0]), reverse=True):
        linear = scope.sole_producer(x, "conv2d", "dense")
        if linear is None or len(linear.operands) == 4 or clamp_of(linear):
            scope.keep(o, f"%{x.name} is no convolution that could add it: shared, clamped, or adding already")
            continue
        return [op(linear.kind, (*linear.operands, r), o.results, **linear.attrs, **clamp_of(o))]
    return None


@on("clip")
def drop_idle_clip(o: Op, scope: Scope) -> Answer:
    """A clip without bounds."""
    return o.operands[0] if bounds(o) == (-math.inf, math.inf) else None


RULES: Final[tuple[Rule, ...]] = (
    drop_idle_clip,
    fuse_clip,
    hoist_clip_over_max_pool,
    hoist_clip_over_concat,
    fuse_residual,
)
