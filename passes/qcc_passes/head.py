"""What a model's outputs mean, so that errors at them can be measured: logits, or plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ConfigError, PassError
from qcc.ir.graph import Graph, live, producers
from qcc.passmgr.facts import CalibrationData
from qcc_passes.layers import Layer, layers
from qcc_passes.samples import fixed_batch

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Head:
    """A graph cut off before its final softmax or argmax operations.

    ``axes`` maps its outputs to the axis along which they are logits, None for plain numbers.
    """

    graph: Graph
    axes: Mapping[str, int | None]
    layers: tuple[Layer, ...]

    @property
    def classifies(self) -> bool:
        """Whether the only output is logits [N, classes]."""
        (axis, *more) = self.axes.values()
        return not more and axis is not None and self.graph.outputs[0].type.rank == 2

    @property
    def classifier(self) -> str:
        """The only output, when it is logits [N, classes]. Raises ConfigError otherwise."""
        if not self.classifies:
            raise ConfigError("this needs a classifier, whose one output is logits; use sensitivity-gauss-newton")
        return next(iter(self.axes))

    def batches(self, data: CalibrationData, size: int, limit: int) -> list[dict[str, Array]]:
        """Up to ``limit`` samples in batches of at most ``size``, or of the batch that the graph has.

        Raises ConfigError where the data do not fill one such batch.
        """
        count = min(limit, data.samples)
        if (fixed := fixed_batch(self.graph)) is not None:
            size = fixed
            count -= count % size
            if count == 0:
                raise ConfigError(
                    f"the model takes {size} samples at once, but only {min(limit, data.samples)} are given"
                )
        types = {v.name: v.type.numpy for v in self.graph.inputs}
        parts = data.batches(size, count)
        return [{n: np.ascontiguousarray(part[n], dtype) for n, dtype in types.items()} for part in parts]


def head(graph: Graph) -> Head:
    """The head of ``graph``. Raises PassError for one with no real output or no layer with weights."""
    made_by = producers(graph)
    axes: dict[str, int | None] = {}
    ends = {}
    for value in graph.outputs:
        axis: int | None = -1 if value.type.rank == 2 and value.type.shape[-1] > 1 else None
        while (o := made_by.get(value.name)) is not None and o.kind in ("softmax", "argmax"):
            value, axis = o.operands[0], o.int_attr("axis")
        if o is not None and o.kind != "constant" and value.type.dtype == "f32":
            axes[value.name], ends[value.name] = axis, value
    if not axes:
        raise PassError("sensitivity needs an output of real numbers that the model computes")
    outputs = tuple(ends.values())
    cut = replace(graph, ops=live(graph.ops, outputs), outputs=outputs)
    found = layers(cut)
    if not found:
        raise PassError("the graph has no conv2d or dense with constant weights, so there are no bits to choose")
    return Head(cut, axes, found)


def softmax(logits: Array, axis: int) -> Array:
    """Probabilities along ``axis``."""
    shifted = np.exp(logits - logits.max(axis=axis, keepdims=True))
    probabilities: Array = shifted / shifted.sum(axis=axis, keepdims=True)
    return probabilities


def fitting_part(data: CalibrationData, held_out: float) -> CalibrationData:
    """All but the last ``held_out`` of the samples: what sensitivities are measured on."""
    return _slice(data, slice(0, data.samples - _held(data, held_out)))


def held_out_part(data: CalibrationData, held_out: float) -> CalibrationData:
    """The last ``held_out`` of the samples, at least one: what candidates are scored on."""
    return _slice(data, slice(data.samples - max(_held(data, held_out), 1), data.samples))


def limited(data: CalibrationData, samples: int) -> CalibrationData:
    """The first ``samples`` at most."""
    return _slice(data, slice(0, samples))


def _held(data: CalibrationData, share: float) -> int:
    return min(round(data.samples * share), data.samples - 1)


def _slice(data: CalibrationData, part: slice) -> CalibrationData:
    labels = None if data.labels is None else data.labels[part]
    return CalibrationData({name: array[part] for name, array in data.arrays.items()}, labels)
