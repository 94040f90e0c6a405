"""Equalize the channels of activations between convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Op, Stage, Value, fresh_name, live, op
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.layers import EQUALIZED
from qcc_passes.canonical.affine import relinear, weights
from qcc_passes.canonical.engine import Scope
from qcc_passes.channel_rules import is_depthwise
from qcc_passes.equalize_choice import NONE, Change, channel_scales, least_error, ways
from qcc_passes.equalize_edges import Edge, channel_extremes, find_edges

Array = NDArray[np.float64]

_SHIFTED = ".shifted"
"""Ends the names of values that are those of the model with their channels shifted, and perhaps scaled."""


class Equalize(Pass):
    """Scale channels between convolutions, so that all use more of their common grid.

    Channel c of the producer (a convolution without residual) is multiplied by s_c ≥ 1, and the
    weights of its readers are divided by it, where s_c = (r / r_c)^strength brings the channel's extremes
    r_c on the first ``samples`` calibration samples towards those of the widest channel, r; ``limit``
    bounds it. Where only depthwise convolutions read it, the strength is 1, since each channel's
    weights have a grid of their own; else ``strength`` shares the unevenness between activations and
    weights (Nagel et al., arXiv:1906.04721; Xiao et al., arXiv:2211.10438). 0 leaves those edges alone.

    A linear result or a Relu keeps the function exactly. An upper clamp (Relu6) cannot follow: it is
    dropped where no sample reached it, and kept otherwise, so that the function changes only where a
    channel goes beyond all it reached in calibration, which its grid would cut off anyway.

    With ``measured``, each edge takes what leaves the least error in its readers' outputs on those samples: these
    factors, SmoothQuant's, which mind the largest weights that read a channel, a shift of the channels that the
    readers' biases take up, with and without factors, or nothing.

    Run it before ``calibrate``. Raises ConfigError where the data do not fit the graph.
    """

    name: ClassVar[str] = "equalize"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)

    samples: int = Field(default=32, gt=0)
    strength: float = Field(default=0.5, ge=0, le=1)
    limit: float = Field(default=16.0, ge=1)
    measured: bool = Field(default=False, description="choose by edge, by the error that is left")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        scope = Scope(graph, ctx.log)
        edges = [e for e in find_edges(graph, scope) if e.depthwise or self.strength]
        if not edges:
            return graph
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        extremes = channel_extremes(graph, edges, data, self.samples)
        changes = self._changes(graph, edges, extremes, data)
        for name, change in changes.items():
            ctx.log.debug("%%%s equalized: %s, widest factor %.3g", name, change.name, change.scale.max())
        edges = [e for e in edges if e.value.name in changes]
        idle = {e.value.name for e in edges if extremes[e.value.name][1].max() < e.ceiling}
        return _changed(graph, edges, changes, idle, scope)

    def _changes(
        self,
        graph: Graph,
        edges: Sequence[Edge],
        extremes: Mapping[str, tuple[Array, Array]],
        data: CalibrationData,
    ) -> dict[str, Change]:
        """What becomes of each edge; those that stay as they are are left out."""
        offered: dict[str, list[Change]] = {}
        for edge in edges:
            low, high = extremes[edge.value.name]
            strength = 1.0 if edge.depthwise else self.strength
            scales = channel_scales(low, high, self.limit, strength)
            plain = [Change("ranges", scales, np.zeros(scales.shape))]
            offered[edge.value.name] = ways(edge, low, high, strength, self.limit) if self.measured else plain
        if not self.measured:
            return {name: change for name, (change,) in offered.items()}
        best = least_error(graph, edges, extremes, offered, data, self.samples)
        return {name: change for name, change in best.items() if change.name != NONE}


def _changed(graph: Graph, edges: Sequence[Edge], changes: Mapping[str, Change], idle: Set[str], scope: Scope) -> Graph:
    """``graph`` with the channels of the values in ``changes`` changed; ``idle`` lose their upper clamp."""
    read: dict[str, tuple[Array, Array]] = {}
    for edge in edges:
        change = changes[edge.value.name]
        for reader, first in edge.readers:
            count = reader.operands[0].type.shape[1]
            scale, shift = read.setdefault(reader.result.name, (np.ones(count), np.zeros(count)))
            scale[first : first + len(change.scale)] *= change.scale
            shift[first : first + len(change.scale)] += change.shift
    ops: list[Op] = []
    for o in graph.ops:
        before, after = read.get(o.result.name), changes.get(o.result.name)
        known = None if before is None and after is None else weights(o, scope)
        if known is None:
            ops.append(o)
            continue
        w, b = known
        if before is not None:
            scale, shift = (_along(a, o, len(w)) for a in before)
            b = b + (w * shift).sum(axis=(1, 2, 3)) if shift.any() else b
            w = w / scale
        if after is not None:
            w, b = w * after.scale.reshape(-1, 1, 1, 1), (b - after.shift) * after.scale
        attrs = {k: a for k, a in o.attrs.items() if k != "hi" or o.result.name not in idle}
        ops += relinear(op(o.kind, o.operands, o.results, **attrs), o.result, w, b, scope)
    return _renamed(replace(graph, ops=live(ops, graph.outputs)), edges, changes)


def _renamed(graph: Graph, edges: Sequence[Edge], changes: Mapping[str, Change]) -> Graph:
    """``graph`` in which values that are no longer the model's do not bear its names."""
    taken = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops}
    names: dict[str, str] = {}
    moved = {v for e in edges if changes[e.value.name].shift.any() for v in (e.value, *e.ways)}
    for v in dict.fromkeys(v for e in edges for v in (e.value, *e.ways)):
        names[v.name] = fresh_name(v.name + (_SHIFTED if v in moved else EQUALIZED), taken)
        taken.add(names[v.name])

    def renamed(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(v, name=names.get(v.name, v.name)) for v in values)

    ops = tuple(replace(o, operands=renamed(o.operands), results=renamed(o.results)) for o in graph.ops)
    return replace(graph, ops=ops)


def _along(factors: Array, o: Op, rows: int) -> Array:
    """What belongs to the input channels of a convolution of ``rows`` output channels, shaped as its weights."""
    if is_depthwise(o):
        return np.repeat(factors, rows // len(factors)).reshape(-1, 1, 1, 1)
    return factors.reshape(1, -1, 1, 1)
