"""Operations that exporters write and the quantizer need not know, in terms of those that it does."""

from __future__ import annotations

from typing import Final

import numpy as np

from qcc.ir.graph import Op, Value, constant, op
from qcc_passes.canonical.affine import clamp_of
from qcc_passes.canonical.engine import Answer, Rule, Scope, infer, on


@on("div")
def divide_by_constant(o: Op, scope: Scope) -> Answer:
    """A division by a constant → a multiplication by its inverse."""
    a, b = o.operands
    c = scope.constant(b)
    if c is None:
        return None
    with np.errstate(divide="ignore", over="ignore"):
        inverse = (1 / c.astype(np.float64)).astype(np.float32)
    if not np.isfinite(inverse).all():
        return scope.keep(o, f"1 / %{b.name} is not finite")
    factor = constant(scope.fresh(b.name), inverse)
    return [factor, op("mul", (a, factor.result), o.results)]


@on("matmul")
def matmul_to_dense(o: Op, scope: Scope) -> Answer:
    """A product with a constant matrix → dense, whose weights are the matrix transposed."""
    a, b = o.operands
    matrix = scope.constant(b)
    if matrix is None:
        return None
    if matrix.size != matrix.shape[-1] * matrix.shape[-2] or a.type.rank < matrix.ndim:
        return scope.keep(o, f"%{b.name} is a stack of matrices")
    rows = matrix.reshape(matrix.shape[-2:]).T
    w = constant(scope.fresh(b.name), np.ascontiguousarray(rows))
    bias = constant(scope.fresh(f"{b.name}.bias"), np.zeros(len(rows), np.float32))
    return [w, bias, op("dense", (a, w.result, bias.result), o.results)]


@on("avg_pool2d")
def global_pool_to_mean(o: Op, scope: Scope) -> Answer:
    """An average over the whole map → reduce_mean."""
    (x,) = o.operands
    whole = o.ints_attr("kernel") == x.type.shape[2:] and o.result.type.shape[2:] == (1, 1)
    padded = any(o.ints_attr("pads")) or ("ceil_pads" in o.attrs and any(o.ints_attr("ceil_pads")))
    if not whole or padded or o.ints_attr("dilations") != (1, 1):
        return scope.keep(o, "its window is not the whole map")
    return [op("reduce_mean", (x,), o.results, axes=(2, 3), keepdims=True, **clamp_of(o))]


@on("conv_transpose2d")
def transposed_conv_to_conv(o: Op, scope: Scope) -> Answer:
    """A transposed convolution → zeros between the samples, then a convolution with the kernel turned."""
    x, w, b = o.operands
    kernel = scope.constant(w)
    if kernel is None:
        return scope.keep(o, f"%{w.name} is not constant")
    groups, dilations = o.int_attr("groups"), o.ints_attr("dilations")
    channels, per_group, kh, kw = kernel.shape
    turned = kernel.reshape(groups, channels // groups, per_group, kh, kw)[..., ::-1, ::-1].transpose(0, 2, 1, 3, 4)
    new_w = constant(scope.fresh(w.name), turned.reshape(groups * per_group, channels // groups, kh, kw))
    spread = infer("dilate2d", (x,), scope.fresh(f"{x.name}.dilated"), factors=o.ints_attr("strides"))
    reach = tuple(d * (k - 1) for d, k in zip(dilations, (kh, kw), strict=True))
    top, left, bottom, right = o.ints_attr("pads")
    below, beyond = o.ints_attr("output_padding")
    pads = (reach[0] - top, reach[1] - left, reach[0] - bottom + below, reach[1] - right + beyond)
    trims = _trim(spread.result, pads, scope) if min(pads) < 0 else []
    source = trims[-1].result if trims else spread.result
    conv = op(
        "conv2d", (source, new_w.result, b), o.results,
        strides=(1, 1), pads=(0, 0, 0, 0) if trims else pads, dilations=dilations, groups=groups,
    )  # fmt: skip
    return [new_w, spread, *trims, conv]


def _trim(x: Value, pads: tuple[int, int, int, int], scope: Scope) -> list[Op]:
    """``x`` padded with zeros where ``pads`` (top, left, bottom, right) are positive, cut where negative."""
    top, left, bottom, right = (max(p, 0) for p in pads)
    padded = infer(
        "pad", (x,), scope.fresh(f"{x.name}.padded"), pads=(0, 0, top, left, 0, 0, bottom, right), values=(0.0,)
    )
    steps = [padded]
    for axis, before, after in ((2, pads[0], pads[2]), (3, pads[1], pads[3])):
        source = steps[-1].result
        start, stop = max(-before, 0), source.type.shape[axis] - max(-after, 0)
        name = scope.fresh(f"{x.name}.cut")
        steps.append(infer("slice", (source,), name, axis=axis, start=start, stop=stop, step=1))
    return steps


RULES: Final[tuple[Rule, ...]] = (divide_by_constant, matmul_to_dense, global_pool_to_mean, transposed_conv_to_conv)
