"""What a channel costs: the size of the weights that make or read it, or of its values on data."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Op, constants
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.channel_groups import ChannelGroups
from qcc_passes.channel_labels import Label
from qcc_passes.channel_rules import channel_axis, is_depthwise
from qcc_passes.samples import parts

Costs = dict[int, float]
"""By channel number."""

WeightMeasure = Literal["weights", "norms", "reading"]

_BUDGET = 64 << 20
"""Bytes of activations held at once."""


def weight_costs(graph: Graph, groups: ChannelGroups, measure: WeightMeasure) -> Costs:
    """The cost of each channel by weights, summed over layers, each in relation to its most costly channel."""
    arrays = constants(graph)
    total: defaultdict[int, float] = defaultdict(float)
    for o in graph.ops:
        if o.kind not in ("conv2d", "dense") or o.operands[1].name not in arrays:
            continue
        weights = np.abs(arrays[o.operands[1].name].astype(np.float64))
        value = o.operands[0] if measure == "reading" else o.result
        label = groups.labels.get(value.name)
        if label is None or not label.only(channel_axis(o)):
            continue
        sizes = _sizes(o, weights, measure)
        if label.channels.size == len(sizes):
            for channel, cost in _largest(label, sizes / max(float(sizes.max()), 1e-30)).items():
                total[channel] += cost
    return dict(total)


def _sizes(o: Op, weights: NDArray[Any], measure: WeightMeasure) -> NDArray[Any]:
    """The size of a layer's weights, per output channel or (``reading``) per input channel."""
    rows = weights.reshape(len(weights), -1)
    if measure == "weights":
        return np.asarray(rows.max(axis=1))
    if measure == "norms":
        return np.asarray(np.sqrt((rows**2).sum(axis=1)))
    groups = o.int_attr("groups") if o.kind == "conv2d" else 1
    if is_depthwise(o):
        return np.asarray(weights.reshape(groups, -1).max(axis=1))
    taps = weights.reshape(groups, len(weights) // groups, weights.shape[1], -1)
    return np.asarray(taps.max(axis=(1, 3)).reshape(-1))


def activation_costs(graph: Graph, groups: ChannelGroups, data: CalibrationData, samples: int) -> Costs:
    """The largest magnitude that each free channel takes in any value, on at most ``samples`` samples.

    Raises ConfigError where ``data`` do not fit the graph.
    """
    free = {name for c in groups.free for name, _ in c.axes}
    values = [o.result for o in graph.ops if o.result.name in free]
    if not values:
        return {}
    model = OrtModel(export_onnx(graph, keep=[v.name for v in values]))
    live = sum(4 * int(np.prod(np.abs(v.type.shape))) for v in values)
    found: Costs = {}
    for part in parts(graph, data, samples, _BUDGET, live):
        seen = model.run(part)
        for v in values:
            label = groups.labels[v.name]
            rest = tuple(a for a in range(v.type.rank) if a not in label.axes)
            for channel, size in _largest(label, np.abs(seen[v.name]).max(axis=rest)).items():
                found[channel] = max(found.get(channel, 0.0), size)
    return found


def _largest(label: Label, sizes: NDArray[Any]) -> Costs:
    """Per channel the largest of ``sizes``, which has one entry per place of the flattened label."""
    channels, back = np.unique(label.channels.reshape(-1), return_inverse=True)
    largest = np.zeros(len(channels))
    np.maximum.at(largest, back, sizes.reshape(-1).astype(np.float64))
    return dict(zip(channels.tolist(), largest.tolist(), strict=True))
