"""How the channels of an activation may be changed, and which way leaves the least error where they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op
from qcc.ir.types import BATCH
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.channel_rules import is_depthwise
from qcc_passes.equalize_edges import Edge
from qcc_passes.quantize_weights import weight_quant
from qcc_passes.samples import parts

Array = NDArray[np.float64]

NONE: Final = "none"
"""The change that leaves everything as it is."""
_BATCH: Final = 8
_LEVELS: Final = 255
_WEIGHT_BITS: Final = 8


@dataclass(frozen=True, slots=True)
class Change:
    """A channel x becomes (x - ``shift``) * ``scale``, [C] each."""

    name: str
    scale: Array
    shift: Array


def channel_scales(low: Array, high: Array, limit: float, strength: float = 1.0) -> Array:
    """The factor [C] ≥ 1 that stretches each channel towards the extremes over all channels; 1 for dead ones.

    ``low`` and ``high`` [C] are the extremes of each channel. ``strength`` is the power of the factor
    that would reach them; none exceeds ``limit``.
    """
    scales: Array = np.clip(_room(low, high) ** strength, 1, limit)
    return scales


def _room(low: Array, high: Array) -> Array:
    """By what each channel [C] can be multiplied without leaving the extremes over all channels; 1 for dead ones."""
    factors = np.full(high.shape, np.inf)
    for reach in (np.maximum(high, 0), np.maximum(-low, 0)):
        used = reach > 0
        factors[used] = np.minimum(factors[used], reach.max() / reach[used])
    factors[np.isinf(factors)] = 1
    return factors


def smooth_scales(low: Array, high: Array, weights: Array, limit: float, strength: float) -> Array:
    """SmoothQuant's factors [C] (arXiv:2211.10438, eq. 4), the least of them 1, within the extremes over all channels.

    A channel of range r that weights of at most ``weights`` [C] read is multiplied by w^(1-a) / r^a.
    """
    reach = np.maximum(np.maximum(high, -low), 0)
    used = (reach > 0) & (weights > 0)
    factors = np.ones(high.shape)
    if used.any():
        factors[used] = weights[used] ** (1 - strength) / reach[used] ** strength
        factors[used] /= factors[used].min()
    scales: Array = np.clip(factors, 1, np.minimum(_room(low, high), limit))
    return scales


def ways(edge: Edge, low: Array, high: Array, strength: float, limit: float) -> list[Change]:
    """The changes that may be made to ``edge``, whose channels have extremes ``low`` and ``high`` [C]; none first.

    Where no reader pads its input, channels may be shifted as well, the readers' biases taking it up: what is
    linear to its middle (Outlier Suppression+, arXiv:2304.09145, eq. 3), what is cut off at zero by as much as it
    always exceeds that (bias absorption, arXiv:1906.04721, sec. 4.2, with measured extremes).
    """
    still = np.zeros(low.shape)
    reading = np.max([np.abs(_by_channel(o, w, len(low))).max(axis=1) for o, w in _read(edge)], axis=0)
    found = [
        Change(NONE, np.ones(low.shape), still),
        Change("ranges", channel_scales(low, high, limit, strength), still),
        Change("ranges and weights", smooth_scales(low, high, reading, limit, strength), still),
    ]
    shift = np.maximum(low, 0) if edge.clamped else (low + high) / 2
    if edge.movable and high.max() < edge.ceiling and shift.any():
        found += [
            Change("shift", np.ones(low.shape), shift),
            Change("shift and ranges", channel_scales(low - shift, high - shift, limit, strength), shift),
        ]
    return found


def least_error(
    graph: Graph,
    edges: Sequence[Edge],
    extremes: Mapping[str, tuple[Array, Array]],
    offered: Mapping[str, Sequence[Change]],
    data: CalibrationData,
    samples: int,
) -> dict[str, Change]:
    """By edge, of the changes ``offered`` that with the least squared error in what its readers make of it.

    Each reader's error is around its mean by channel, which biases take up, and relative to its output, on
    ``samples`` samples, the activation on one grid of 8 bits that just holds ``extremes``, and weights rounded to
    nearest on grids of 8 bits by output channel.
    """
    trials = {edge.value.name: _Trial(edge, *extremes[edge.value.name], offered[edge.value.name]) for edge in edges}
    reads = sorted({o.operands[0].name for edge in edges for o, _ in edge.readers})
    model = OrtModel(export_onnx(graph, keep=reads))
    for batch in parts(graph, data, samples, _BATCH, 1):
        seen = model.run(batch)
        for trial in trials.values():
            trial.add(seen)
    return {name: trial.best for name, trial in trials.items()}


class _Trial:
    """Errors of one edge's changes."""

    def __init__(self, edge: Edge, low: Array, high: Array, changes: Sequence[Change]) -> None:
        self._edge = edge
        self._changes = changes
        self._count = len(low)
        self._steps = [_grid(*((x - c.shift) * c.scale for x in (low, high))) for c in changes]
        weights = [w for _, w in _read(edge)]
        self._exact = [_part(o, w, self._count) for (o, _), w in zip(edge.readers, weights, strict=True)]
        self._rounded = [
            [_part(o, _rounded(o, w, c.scale), self._count) for (o, _), w in zip(edge.readers, weights, strict=True)]
            for c in changes
        ]
        self._squares = np.zeros((len(changes), len(edge.readers)))
        self._sums = [[np.zeros(len(w)) for w in weights] for _ in changes]
        self._places = np.zeros(len(edge.readers))
        self._energy = np.zeros(len(edge.readers))

    def add(self, seen: Mapping[str, NDArray[Any]]) -> None:
        for index, (o, first) in enumerate(self._edge.readers):
            x = np.ascontiguousarray(seen[o.operands[0].name][:, first : first + self._count])
            (wanted,) = self._exact[index].run({"x": x}).values()
            self._energy[index] += np.square(wanted, dtype=np.float64).sum()
            self._places[index] += wanted[:, 0].size
            for row, (change, grid) in enumerate(zip(self._changes, self._steps, strict=True)):
                (found,) = self._rounded[row][index].run({"x": _snapped(x, change, *grid)}).values()
                error = (found - wanted).astype(np.float64)
                self._squares[row, index] += np.square(error).sum()
                self._sums[row][index] += error.sum(axis=(0, 2, 3))

    @property
    def best(self) -> Change:
        """The first of those with the least error."""
        means = np.array([[np.square(s).sum() for s in row] for row in self._sums]) / np.maximum(self._places, 1)
        relative = (self._squares - means) / np.where(self._energy > 0, self._energy, 1)
        return self._changes[int(relative.sum(axis=1).argmin())]


def _read(edge: Edge) -> list[tuple[Op, Array]]:
    """The readers, and their weights for the channels of ``edge``."""
    count = edge.value.type.shape[1]
    found = []
    for (o, first), w in zip(edge.readers, edge.weights, strict=True):
        rows = len(w) // o.operands[0].type.shape[1]
        own = w[rows * first : rows * (first + count)] if is_depthwise(o) else w[:, first : first + count]
        found.append((o, own))
    return found


def _by_channel(o: Op, w: Array, channels: int) -> Array:
    """Weights by the channel that they read, [C, rest]."""
    return (w if is_depthwise(o) else w.swapaxes(0, 1)).reshape(channels, -1)


def _rounded(o: Op, w: Array, scale: Array) -> Array:
    """Weights as they are once rounded for inputs of ``scale``, on the old scale again."""
    factors = np.repeat(scale, len(w) // len(scale)).reshape(-1, 1, 1, 1) if is_depthwise(o) else scale[:, None, None]
    quant = weight_quant(w / factors, _WEIGHT_BITS, "channel", "max")
    on_grid: Array = quant.dequantize(quant.quantize(w / factors)) * factors
    return on_grid


def _part(o: Op, w: Array, channels: int) -> OrtModel:
    """What ``o`` makes of ``channels`` of its input by weights ``w``, without bias, clamp or residual."""
    b = GraphBuilder("part")
    x = b.input("x", (BATCH, channels, *o.operands[0].type.shape[2:]))
    zeros = np.zeros(len(w), np.float32)
    attrs: dict[str, Any] = {k: a for k, a in o.attrs.items() if k not in ("lo", "hi", "groups")}
    operands = [x, b.constant(w.astype(np.float32), "w"), b.constant(zeros, "b")]
    y = b.op("conv2d", operands, groups=channels if is_depthwise(o) else 1, **attrs)
    return OrtModel(export_onnx(b.graph([y])))


def _grid(low: Array, high: Array) -> tuple[float, float]:
    """Step and lowest value of the grid for channels of these extremes."""
    least, most = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    step = (most - least) / _LEVELS or 1.0
    return step, round(least / step) * step


def _snapped(x: NDArray[Any], change: Change, step: float, least: float) -> NDArray[np.float32]:
    """``x`` [N, C, H, W] as it is once changed and rounded, on the old scale again."""
    scale, shift = (a.reshape(-1, 1, 1).astype(np.float32) for a in (change.scale, change.shift))
    codes = np.clip(np.rint(((x - shift) * scale - least) / step), 0, _LEVELS)
    found: NDArray[np.float32] = ((codes * step + least) / scale + shift).astype(np.float32)
    return found
