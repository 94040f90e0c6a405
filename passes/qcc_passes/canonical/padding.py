"""Explicit padding that the window operation after it can do itself."""

from __future__ import annotations

import math
from typing import Final

from qcc.ir.graph import Op, Value, op
from qcc_passes.canonical.clamps import bounds
from qcc_passes.canonical.engine import Answer, Rule, Scope, on

_KEEPS_SIGN: Final = ("max_pool2d", "slice", "reshape", "transpose", "gather", "dilate2d", "reduce_max", "avg_pool2d")


def _spatial(pad: Op) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of a pad over H and W alone; None where it pads other axes."""
    pads = pad.ints_attr("pads")
    if len(pads) != 8 or any(pads[:2]) or any(pads[4:6]):
        return None
    return (pads[2], pads[3], pads[6], pads[7])


def _joined(o: Op, extra: tuple[int, int, int, int]) -> tuple[int, ...]:
    return tuple(p + q for p, q in zip(o.ints_attr("pads"), extra, strict=True))


def _zero_pad_before(o: Op, scope: Scope) -> tuple[Op, tuple[int, int, int, int]] | None:
    pad = scope.producer(o.operands[0], "pad")
    extra = None if pad is None else _spatial(pad)
    if pad is None or extra is None:
        return None
    if any(pad.floats_attr("values")):
        scope.keep(o, f"{pad} pads with values other than zero")
        return None
    return pad, extra


@on("conv2d")
def fold_pad_into_conv(o: Op, scope: Scope) -> Answer:
    """conv(pad(x, 0)): a convolution pads with zeros itself."""
    if (found := _zero_pad_before(o, scope)) is None:
        return None
    pad, extra = found
    return [op("conv2d", (pad.operands[0], *o.operands[1:]), o.results, **{**o.attrs, "pads": _joined(o, extra)})]


@on("avg_pool2d")
def fold_pad_into_average(o: Op, scope: Scope) -> Answer:
    """avg_pool(pad(x, 0)), where the average counts the padding."""
    if (found := _zero_pad_before(o, scope)) is None:
        return None
    pad, extra = found
    if any(o.ints_attr("pads")) and not o.bool_attr("count_include_pad"):
        return scope.keep(o, "it has padding of its own that it does not count")
    attrs = {**o.attrs, "pads": _joined(o, extra), "count_include_pad": True}
    return [op("avg_pool2d", pad.operands, o.results, **attrs)]


@on("max_pool2d")
def fold_pad_into_max(o: Op, scope: Scope) -> Answer:
    """max_pool(pad(x, v)), where no x is below v and every window sees some of x.

    The pool's own padding never wins, so padding with a lower bound of x is the same.
    """
    pad = scope.producer(o.operands[0], "pad")
    extra = None if pad is None else _spatial(pad)
    if pad is None or extra is None:
        return None
    (x,) = pad.operands
    if max(pad.floats_attr("values")) > lower_bound(x, scope):
        return scope.keep(o, f"%{x.name} is not known to reach no lower than the padding")
    pads = _joined(o, extra)
    if any(o.ints_attr("pads")) or not _windows_reach(o, pads, x.type.shape[2:]):
        return scope.keep(o, "a window could lie in the padding alone")
    return [op("max_pool2d", (x,), o.results, **{**o.attrs, "pads": pads})]


def lower_bound(x: Value, scope: Scope) -> float:
    """A value that no element of ``x`` is below, as far as clamps show; −inf where they do not."""
    for _ in scope.graph.ops:
        made = scope.producer(x)
        if made is None:
            break
        if made.kind == "constant":
            return float(made.array.min()) if made.array.size else -math.inf
        if made.kind == "softmax":
            return 0.0
        low = bounds(made)[0]
        if low > -math.inf or made.kind not in _KEEPS_SIGN:
            return low
        if made.kind in ("dilate2d", "avg_pool2d"):
            return min(0.0, lower_bound(made.operands[0], scope))
        x = made.operands[0]
    return -math.inf


def _windows_reach(o: Op, pads: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Whether every window of a pool with ``pads`` covers an element of the map."""
    counts = o.result.type.shape[2:]
    for axis in (0, 1):
        kernel, stride, dilation = (o.ints_attr(k)[axis] for k in ("kernel", "strides", "dilations"))
        for position in range(counts[axis]):
            first = position * stride - pads[axis]
            if not any(0 <= first + i * dilation < size[axis] for i in range(kernel)):
                return False
    return True


RULES: Final[tuple[Rule, ...]] = (fold_pad_into_conv, fold_pad_into_average, fold_pad_into_max)
