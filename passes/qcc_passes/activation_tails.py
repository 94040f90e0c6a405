"""Precision groups of activations: the few channels that reach far keep 8 bits, the others fewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Op, Stage, Value, constant, fresh_name, op, rewrite, users
from qcc.ir.layout import Widths
from qcc.ir.types import Dyadic, Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.layers import without_grids
from qcc_passes.acceptance import Court
from qcc_passes.curvature import Network, gauss_newton_cotangents
from qcc_passes.head import fitting_part, head
from qcc_passes.layers import LAYER_KINDS
from qcc_passes.scoring import JudgingShare, ScoredBy, corrected_by
from qcc_passes.sensitivity import spread_of

Array = NDArray[Any]

_TAIL_BITS: Final = 8
_BATCH: Final = 16
_PROBES: Final = 4
_TEMPERATURE: Final = 4.0
_ROWS: Final = 8192
"""Places of each map that are looked at, over all samples."""
_FACTORS: Final = np.linspace(0.15, 1.05, 37)
"""Of the step that clips none of the other channels."""


@dataclass(frozen=True, slots=True)
class Tail:
    """One activation: how many of its channels have 8 bits; its squared error on held-out samples, by that before."""

    value: str
    channels: int
    tail: int
    bits: int
    ratio: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class ActivationTailsFound:
    """One entry per activation that the pass tried."""

    tails: tuple[Tail, ...]

    def report(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {"tails": [asdict(tail) for tail in self.tails]}


class ActivationTails(Pass):
    """Give the channels of an activation that reach farthest 8 bits, at the step of the others.

    For results of layers below 8 bits, without zero point, that only layers read. All channels keep one step, so
    that products stay plain sums; it is fitted anew, and a table bounds the codes of channels that keep their bits.
    The tail is ``share`` of the channels, and only where the squared error falls on samples that the step was not
    fitted to, weighed by what it does to the outputs. Goes after ``quantize``. ``samples`` of the calibration data are
    used.

    That is a proxy: errors of several activations add up otherwise, and weights make up for some. So the networks with
    and without tails are compiled by ``scored_by``, on all but ``held_out`` of the calibration data, and tails are kept
    where on the rest the KL to fp32 is no more, and that of softened outputs less by a standard error.
    """

    name: ClassVar[str] = "activation-tails"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (ActivationTailsFound,)

    share: float = Field(default=0.125, gt=0, le=1, description="of the channels")
    samples: int = Field(default=64, ge=2, description="calibration samples to use")
    held_out: JudgingShare = 0.4
    scored_by: ScoredBy = Field(
        default_factory=corrected_by,
        min_length=1,
        description="passes that make the networks that are compared, and their options. The default pipeline names "
        "its own",
    )

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with tails. Raises ConfigError where the target has no 8-bit activations, or data do not fit."""
        if _TAIL_BITS not in ctx.capabilities.activation_bits:
            raise ConfigError(f"{self.name}: the target has no {_TAIL_BITS}-bit activations")
        chosen = _candidates(graph)
        seen = self._seen(graph, chosen, ctx)
        fitted = [self._fit(o, *seen[o.result.name]) for o in chosen]
        found = {tail.value: made for tail, made in fitted if tail.accepted}
        tailed = _with_tails(graph, found)
        if found:
            court = Court.of(graph, ctx, self.scored_by, self.held_out)
            if not court.prefers(tailed, graph, self.name, ctx):
                found, tailed = {}, graph
        tails = tuple(replace(tail, accepted=tail.value in found) for tail, _ in fitted)
        ctx.facts.put(ActivationTailsFound(tails))
        ctx.log.info("%s: %d of %d activations have a tail", self.name, len(found), len(tails))
        return tailed

    def _seen(self, graph: Graph, chosen: list[Op], ctx: PassContext) -> Mapping[str, tuple[Array, Array]]:
        """Rows of channels [n, C] of every activation in fp32, and what an error there does to the outputs, squared.

        Places are spread over the samples. Errors are weighed by random cotangents of softened outputs.
        """
        if not chosen:
            return {}
        top = head(without_grids(graph))
        network, names = Network(top, ctx.threads), {o.result.name for o in chosen}
        data = fitting_part(ctx.facts.get(CalibrationData), self.held_out)
        count = min(self.samples, data.samples)
        batches = top.batches(data, _BATCH, count)
        spread = spread_of(top, ctx, _BATCH, count)
        rng = ctx.rng()
        rows: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
        for inputs in batches:
            values = network.values(inputs)
            seeds = [gauss_newton_cotangents(top, values, spread, rng, _TEMPERATURE) for _ in range(_PROBES)]
            for steps in zip(*(network.walk(values, seed) for seed in seeds), strict=True):
                if (name := steps[0][0].result.name) in names:
                    square = np.mean([np.square(grad) for _, grad, _ in steps], axis=0)
                    places = rng.integers(0, 1 << 30, max(1, _ROWS // count))
                    rows[name].append((_rows(values[name], places), _rows(square, places)))
        return {name: (_joined([r for r, _ in some]), _joined([w for _, w in some])) for name, some in rows.items()}

    def _fit(self, o: Op, rows: Array, weights: Array) -> tuple[Tail, tuple[Quant, Array]]:
        """The verdict on a tail of ``o``, the grid, and the bits of every channel."""
        grid = _grid(o)
        half = len(rows) // 2
        fit, held, by, judge = rows[:half], rows[half:], weights[:half], weights[half:]
        count = rows.shape[1]
        most = max(1, int(count * self.share))
        coarse = np.full(count, float(grid.qmax))
        lost = (_errors(fit, float(grid.scale[0]), coarse) * by).sum(axis=0)
        far = np.argsort(-lost, kind="stable")[:most]
        bits = np.full(count, grid.bits)
        bits[far] = _TAIL_BITS
        top = np.left_shift(1, bits) - 1.0
        widest = max(float((fit / top).max()), 1e-30)
        step = min(_FACTORS * widest, key=lambda s: float((_errors(fit, float(s), top) * by).sum()))
        quant = Quant(_TAIL_BITS, False, (Dyadic.of(float(step)),))
        before = float((_errors(held, float(grid.scale[0]), coarse) * judge).sum())
        ratio = float((_errors(held, float(quant.scale[0]), top) * judge).sum()) / (before or 1.0)
        tail = Tail(o.result.name, count, most, grid.bits, ratio, ratio < 1)
        return tail, (quant, bits)


def _errors(rows: Array, step: float, top: Array) -> Array:
    """The squared errors of ``rows`` on unsigned codes of ``step`` up to ``top`` by channel."""
    found: Array = np.square(np.clip(np.rint(rows / step), 0, top) * step - rows)
    return found


def _joined(some: Sequence[Array]) -> Array:
    return np.concatenate(some).astype(np.float64)


def _rows(value: Array, places: Array) -> Array:
    """Rows of channels of ``value`` [N, C, ...] at ``places`` of each sample, [n, C]."""
    flat = np.moveaxis(value, 1, -1).reshape(len(value), -1, value.shape[1])
    return flat[:, places % flat.shape[1]].reshape(-1, value.shape[1])


def _grid(o: Op) -> Quant:
    """The grid of the result of ``o``, which has one."""
    grid = o.result.type.quant
    if grid is None:
        raise ConfigError(f"{o}: its result has no grid; run quantize first")
    return grid


def _candidates(graph: Graph) -> list[Op]:
    """Layers with narrow results that only layers read, as what they multiply."""
    table, outputs = users(graph), {v.name for v in graph.outputs}
    found = []
    for o in graph.ops:
        grid, name = o.result.type.quant, o.result.name
        if o.kind not in LAYER_KINDS or grid is None or grid.bits >= _TAIL_BITS or grid.zero_point or grid.signed:
            continue
        readers = table[name]
        plain = all(r.kind in LAYER_KINDS and [v.name for v in r.operands].index(name) == 0 for r in readers)
        once = all(sum(v.name == name for v in r.operands) == 1 for r in readers)
        if readers and plain and once and name not in outputs and o.result.type.rank in (2, 4):
            found.append(o)
    return found


def _with_tails(graph: Graph, found: Mapping[str, tuple[Quant, Array]]) -> Graph:
    """``graph`` with a bound on the channels that keep their bits behind every value in ``found``."""
    taken = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops}

    def rule(o: Op) -> list[Op] | None:
        name = o.result.name
        if name not in found:
            return None
        quant, bits = found[name]
        wide = fresh_name(f"{name}.wide", taken)
        limits = fresh_name(f"{name}.limits", taken | {wide})
        taken.update((wide, limits))
        layer = op(o.kind, o.operands, [Value(wide, replace(o.result.type, quant=quant))], **o.attrs)
        reals = (np.left_shift(1, bits) - 1) * float(quant.scale[0])
        shape = (-1,) + (1,) * (o.result.type.rank - 2)
        bound = constant(limits, reals.astype(np.float32).reshape(shape))
        widths = Quant(quant.bits, False, quant.scale, layout=Widths.of(1, bits))
        result = o.result.typed(quant=widths)
        return [layer, bound, op("map", [layer.result, bound.result], [result], fn="min(x, p0)")]

    return rewrite(graph, rule)
