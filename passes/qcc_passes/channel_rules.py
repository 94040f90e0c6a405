"""How each operation carries channels from its operands to its result: one rule per kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from qcc.ir.graph import Op
from qcc_passes.channel_labels import Label, reshaped
from qcc_passes.channel_tracker import Tracker

Rule = Callable[[Tracker, Op], Label | None]


def carry(tracker: Tracker, o: Op) -> None:
    """Give the result of ``o`` its label, and put on its operands the constraints that ``o`` means."""
    rule = _RULES.get(o.kind)
    if rule is None:
        if o.kind != "constant":
            tracker.hold(o, "reads it in a way that is not understood")
        return
    label = rule(tracker, o)
    if label is not None:
        tracker.labels[o.result.name] = label


def is_depthwise(o: Op) -> bool:
    """Whether a convolution has several groups of one input channel each."""
    return o.kind == "conv2d" and o.int_attr("groups") > 1 and o.operands[1].type.shape[1] == 1


def channel_axis(o: Op) -> int:
    """The channel axis of what a conv2d or dense reads and writes."""
    return 1 if o.kind == "conv2d" else o.result.type.rank - 1


def _linear(t: Tracker, o: Op) -> Label | None:
    if any(v.name not in t.constants for v in o.operands[1:3]):
        t.hold(o, "has weights that vary")
        return None
    axis = channel_axis(o)
    x = t.label(o.operands[0])
    if x is not None and not x.only(axis):
        t.pin(x, f"{o} reads it, though its channels are not on axis {axis}")
        x = None
    made = _made(t, o, x if x is not None and x.axes else None, axis)
    for r in o.operands[3:]:
        t.join(o, made, r)
    return made


def _made(t: Tracker, o: Op, x: Label | None, axis: int) -> Label:
    """The result's channels: new ones, held together by group, or those of a depthwise operand."""
    groups = o.int_attr("groups") if o.kind == "conv2d" else 1
    count = o.result.type.shape[axis]
    if x is not None and is_depthwise(o):
        times = count // groups
        lanes = (x.lanes.reshape(-1, 1) * times + np.arange(times)).reshape(-1)
        return Label.along(np.repeat(x.channels.reshape(-1), times), o.result.type.rank, axis, lanes)
    made = Label.along(t.fresh(count), o.result.type.rank, axis)
    if groups > 1:
        t.confine(made, f"{o.result.name} writes", np.arange(count) // (count // groups))
        if x is not None:
            t.confine(x, f"{o.result.name} reads", np.arange(x.channels.size) // (x.channels.size // groups))
    return made


def _elementwise(t: Tracker, o: Op) -> Label | None:
    rank = o.result.type.rank
    known = [label.of_rank(rank) for v in o.operands if (label := t.label(v)) is not None]
    lead = max(known, key=lambda label: len(label.axes), default=None)
    if lead is None or not lead.axes:
        return None
    for v in o.operands:
        t.join(o, lead, v)
    return lead


def _same(t: Tracker, o: Op) -> Label | None:
    return t.label(o.operands[0])


def _map(t: Tracker, o: Op) -> Label | None:
    if any(v.name not in t.constants for v in o.operands[1:]):
        t.hold(o, "has parameters that vary")
        return None
    label = t.label(o.operands[0])
    if label is not None:
        for v in o.operands[1:]:
            t.join(o, label, v)
    return label


def _window(t: Tracker, o: Op) -> Label | None:
    label = t.label(o.operands[0])
    if label is not None and not label.only(1):
        t.hold(o, "slides over its channels")
        return None
    return label


def _reduce(t: Tracker, o: Op) -> Label | None:
    axes = (o.int_attr("axis"),) if o.kind == "argmax" else o.ints_attr("axes")
    label = t.label(o.operands[0])
    if label is None:
        return None
    touched = set(label.axes) & set(axes)
    if touched and o.kind == "argmax":
        t.hold(o, "gives positions of it")
        return None
    if touched and touched != set(label.axes):
        t.hold(o, "reduces it in groups")
        return None
    if touched:
        return None
    return label if o.bool_attr("keepdims") else label.moved(lambda a: np.squeeze(a, axes))


def _softmax(t: Tracker, o: Op) -> Label | None:
    label, axis = t.label(o.operands[0]), o.int_attr("axis")
    if label is not None and axis in label.axes and not label.only(axis):
        t.hold(o, "normalizes it in groups")
        return None
    return label


def _concat(t: Tracker, o: Op) -> Label | None:
    axis = o.int_attr("axis")
    parts: list[Label] = []
    for i, v in enumerate(o.operands):
        label = t.label(v)
        if label is not None and not label.only(axis):
            t.hold(o, "joins it along another axis than that of its channels")
            return None
        size = v.type.shape[axis]
        if label is None or label.channels.size != size:
            label = Label.along(t.fresh(size), v.type.rank, axis)
            t.pin(label, f"the order of %{v.name} is fixed")
        if o.result.name in t.split:
            label = Label(label.channels, label.lanes * len(o.operands) + i)
        parts.append(label)
    return Label(np.concatenate([p.channels for p in parts], axis), np.concatenate([p.lanes for p in parts], axis))


def _slice(t: Tracker, o: Op) -> Label | None:
    label, axis = t.label(o.operands[0]), o.int_attr("axis")
    if label is None or axis not in label.axes:
        return label
    part = (slice(None),) * axis + (slice(o.int_attr("start"), o.int_attr("stop"), o.int_attr("step")),)
    return label.moved(lambda a: a[part])


def _gather(t: Tracker, o: Op) -> Label | None:
    label, axis, indices = t.label(o.operands[0]), o.int_attr("axis"), o.ints_attr("indices")
    if label is None or axis not in label.axes:
        return label
    if len(set(indices)) < len(indices):
        t.hold(o, "repeats channels of it")
        return None
    return label.moved(lambda a: np.take(a, indices, axis))


def _pad(t: Tracker, o: Op) -> Label | None:
    """Added channels are all alike: they are channels of their own, and may change seats."""
    label, rank, pads = t.label(o.operands[0]), o.result.type.rank, o.ints_attr("pads")
    values = o.attrs["values"]
    if label is None:
        return None
    if isinstance(values, tuple) and len(set(values)) > 1:
        t.hold(o, "pads each channel with another value")
        return None
    wider = [(pads[a], pads[a + rank]) if a in label.axes else (0, 0) for a in range(rank)]
    added = np.pad(np.zeros(label.channels.shape, bool), wider, constant_values=True)
    channels, lanes = (np.pad(a, wider) for a in (label.channels, label.lanes))
    channels[added] = t.fresh(int(added.sum()))
    return Label(channels, lanes)


def _reshape(t: Tracker, o: Op) -> Label | None:
    label = t.label(o.operands[0])
    return None if label is None else reshaped(label, o.operands[0].type.shape, o.result.type.shape)


def _transpose(t: Tracker, o: Op) -> Label | None:
    label = t.label(o.operands[0])
    return None if label is None else label.moved(lambda a: a.transpose(o.ints_attr("perm")))


def _matmul(t: Tracker, o: Op) -> Label | None:
    """Contracted channels share one order within a batch entry (a head); the others go through."""
    a, b = o.operands
    if any(v.name in t.constants for v in (a, b)) or a.type.rank != b.type.rank:
        t.hold(o, "multiplies it with a constant, or with fewer axes")
        return None
    left, right = t.label(a), t.label(b)
    rank = a.type.rank
    rows, columns = rank - 2, rank - 1
    if left is not None and right is not None and rows not in left.axes and columns not in right.axes:
        turned = right.moved(lambda array: np.swapaxes(array, rows, columns))
        if turned.like(left) and left.axes:
            t.same.add_edges_from(
                (int(p), int(q)) for p, q in zip(left.channels.flat, turned.channels.flat, strict=True)
            )
            _keep_heads(t, o, left)
            return None
    for one, other, contracted in ((left, right, columns), (right, left, rows)):
        if one is not None and (other is None or not other.axes) and contracted not in one.axes:
            _keep_heads(t, o, one)
            return one
    t.hold(o, "multiplies channels in different orders")
    return None


def _keep_heads(t: Tracker, o: Op, label: Label) -> None:
    shape = label.channels.shape
    heads = np.arange(math.prod(shape[:-2])).reshape(*shape[:-2], 1, 1)
    t.confine(label, f"{o.result.name} heads of", np.broadcast_to(heads, shape))


_RULES: Final[Mapping[str, Rule]] = {
    **dict.fromkeys(("conv2d", "dense"), _linear),
    **dict.fromkeys(("add", "sub", "mul", "div"), _elementwise),
    "clip": _same,
    "map": _map,
    **dict.fromkeys(("max_pool2d", "avg_pool2d", "resize_linear", "dilate2d"), _window),
    **dict.fromkeys(("reduce_max", "reduce_mean", "reduce_sum", "argmax"), _reduce),
    "softmax": _softmax,
    "concat": _concat,
    "slice": _slice,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "matmul": _matmul,
}
