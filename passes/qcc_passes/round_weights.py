"""Integer weights that keep each layer's output, chosen on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import PassError
from qcc.ir.graph import Graph, Op, Stage, Value, constant, constants, rewrite
from qcc.ir.types import Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.blas import one_thread
from qcc.verify.layers import without_grids
from qcc_passes.adaround import adaround
from qcc_passes.held_out import HeldOut, Judge
from qcc_passes.layers import LAYER_KINDS, groups_of, own_biases
from qcc_passes.levels import round_on
from qcc_passes.moments import Moments, columns, input_moments, steady
from qcc_passes.rounding import Solver, compensated, gptq_and_descent
from qcc_passes.samples import affordable, elements, fixed_batch, parts, samples_in
from qcc_passes.sweep import Step, Sweep

Array = NDArray[Any]

_RUN: Final = 64 << 20
"""Bytes of activations that one run holds."""
_LEAST_RUNS: Final = 4
_HELD: Final = 0.25
"""Share of the runs that only judge."""

Method = Literal["gptq", "adaround"]
_SOLVERS: Final[Mapping[Method, Solver]] = {"gptq": gptq_and_descent, "adaround": adaround}

Parts = Sequence[Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Rounded:
    """What the pass did to one layer: squared output error on held-out samples, relative to the output's."""

    layer: str
    bits: int
    before: float
    after: float
    accepted: bool


@dataclass(frozen=True, slots=True)
class RoundedWeights:
    """One entry per layer that the pass tried."""

    layers: tuple[Rounded, ...]

    def report(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {"layers": [asdict(layer) for layer in self.layers]}


class RoundWeights(Pass):
    """Round weights by GPTQ, then integer coordinate descent with scale refit, on the layers' inputs; or by AdaRound.

    Layers whose weights have ``compensate_below`` bits or more keep what they compute on fp32 inputs.
    Those with fewer are visited in order, each seeing what the rounded ones before it compute, and
    aim at the fp32 output, undoing upstream error as well; at 8 bits that would fit noise. An output channel keeps
    its rounding to nearest unless its error falls on samples held out from the choice (all of a layer's
    together, where they share a scale). Errors are those about the mean: what rounding does to a channel's mean,
    its bias takes back. In order, they are those after the clamp, and count less where inputs are far off.
    ``samples`` of the calibration data are used, by default more for smaller networks, and of each
    layer's output ``positions`` places on them, twice as many where layers are visited in order.
    """

    name: ClassVar[str] = "round-weights"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (RoundedWeights,)

    below: int = Field(default=9, ge=2, le=9, description="round layers whose weights have fewer bits")
    method: Method = Field(default="gptq", description="gptq: with coordinate descent; adaround: the better neighbour")
    compensate_below: int = Field(default=8, ge=2, le=9, description="aim at the fp32 output below so many bits")
    samples: int | None = Field(default=None, ge=2, description="calibration samples to use")
    positions: int = Field(
        default=8_192, ge=16, description="output positions per layer, over all samples; twice as many in order"
    )
    damping: float = Field(default=0.01, gt=0, description="share of the mean diagonal added to the Gram matrix")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with rounded weights. Raises ConfigError where the data do not fit."""
        bits = {o.result.name: b for o in graph.ops if (b := self._bits(o)) is not None}
        verdicts: list[Rounded] = []
        fitted, held = self._parts(graph, ctx)
        if bits and not (fitted and held):
            ctx.log.warning("%s: weights stay as they are: too few calibration samples to hold some out", self.name)
            bits = {}
        graph = own_biases(graph) if bits else graph
        alone = [o for o in graph.ops if bits.get(o.result.name, 0) >= self.compensate_below]
        if alone:
            graph = self._round_alone(graph, alone, fitted, held, verdicts, ctx)
        if len(alone) < len(bits):
            graph = self._round_in_order(graph, len(bits) - len(alone), fitted, held, verdicts, ctx)
        ctx.facts.put(RoundedWeights(tuple(verdicts)))
        return graph

    def _bits(self, o: Op) -> int | None:
        """The weight bits of a layer that is to be rounded, None for every other operation."""
        quant = o.operands[1].type.quant if o.kind in LAYER_KINDS else None
        return quant.bits if quant is not None and quant.bits < self.below and quant.axis in (0, None) else None

    def _parts(self, graph: Graph, ctx: PassContext) -> tuple[Parts, Parts]:
        """Samples to fit to, and those that only judge."""
        data = ctx.facts.get(CalibrationData)
        count = min(self.samples or affordable(graph), data.samples)
        live = 4 * elements(graph) // (fixed_batch(graph) or 1)
        runs = parts(graph, data, count, min(_RUN, max(1, count // _LEAST_RUNS) * live), live)
        held = max(1, round(len(runs) * _HELD))
        return runs[:-held], runs[-held:]

    def _round_alone(
        self,
        graph: Graph,
        chosen: Sequence[Op],
        fitted: Parts,
        held: Parts,
        verdicts: list[Rounded],
        ctx: PassContext,
    ) -> Graph:
        """Every layer by itself, on fp32 inputs."""
        plain = without_grids(graph)
        places = self._places([*fitted, *held])
        fit, judge = (input_moments(plain, chosen, p, places, ctx) for p in (fitted, held))
        arrays = constants(graph)
        changed: dict[str, Op] = {}

        def decide(o: Op) -> tuple[Rounded, Sequence[Op]]:
            return self._decide(o, arrays, fit[o.result.name], judge[o.result.name], ctx)

        with one_thread(), ThreadPoolExecutor(ctx.threads) as pool:
            for done, (verdict, made) in enumerate(pool.map(decide, chosen), 1):
                verdicts.append(verdict)
                changed |= {c.result.name: c for c in made}
                ctx.progress(self.name, done, len(chosen))
        return rewrite(graph, lambda o: [changed[o.result.name]] if o.result.name in changed else None)

    def _round_in_order(
        self, graph: Graph, todo: int, fitted: Parts, held: Parts, verdicts: list[Rounded], ctx: PassContext
    ) -> Graph:
        """Layers below ``compensate_below`` bits, on what the ones before them compute."""
        arrays = constants(graph)
        places = 2 * self._places([*fitted, *held])
        done = 0

        def revise(step: Step) -> Sequence[Op]:
            nonlocal done
            if (bits := self._bits(step.op)) is None or bits >= self.compensate_below:
                return ()
            seen = (self._columns(step, part, places, ctx) for part in range(len(fitted) + len(held)))
            fit = _total(Moments.of(y, x, steady(x, y)) for x, y in islice(seen, len(fitted)))
            exact, quantized = (np.concatenate(side, axis=-1) for side in zip(*seen, strict=True))
            judge = HeldOut.of(step.op, exact, quantized, arrays[step.op.operands[2].name], fit)
            verdict, made = self._decide(step.op, arrays, fit, judge, ctx)
            verdicts.append(verdict)
            done += 1
            ctx.progress(self.name, done, todo)
            return made

        return Sweep(graph, [*fitted, *held], ctx.threads).run(revise)

    def _places(self, runs: Parts) -> int:
        """Output positions to look at per sample."""
        return max(1, self.positions // sum(map(samples_in, runs)))

    def _columns(self, step: Step, part: int, places: int, ctx: PassContext) -> tuple[Array, Array]:
        """Columns of fp32 inputs as far as their grid reaches, and of quantized ones.

        Ranges are chosen by what clipping does to the outputs: outliers beyond them do not matter there, but
        would outweigh all else in a layer's own output.
        """
        exact, quantized = step.operand(0, part)
        if (grid := step.op.operands[0].type.quant) is not None:
            exact = np.clip(exact, *grid.span(exact.ndim))
        seed = ctx.seed + part
        return columns(step.op, exact, places, seed), columns(step.op, quantized, places, seed)

    def _decide(
        self, o: Op, arrays: Mapping[str, Array], fit: Moments, judge: Judge, ctx: PassContext
    ) -> tuple[Rounded, Sequence[Op]]:
        """The verdict on rounding the weights of ``o``, and the new constants if it is accepted."""
        weight = o.operands[1]
        weights, bias = arrays[weight.name], arrays[o.operands[2].name]
        plain = _snapped(weight, weights)
        groups = groups_of(o)
        real, near = (a.astype(np.float64).reshape(groups, len(a) // groups, -1) for a in (weights, plain))
        best, grid = self._rounded(real, _grid(weight), fit, judge, weights.shape)
        errors, least = judge.errors(real, near), judge.errors(real, best)
        # rows that share a scale are rounded together
        better = least < errors if grid.axis is not None else np.full(errors.shape, least.sum() < errors.sum())
        energy = judge.energy(real) or 1.0
        after = float(np.where(better, least, errors).sum() / energy)
        verdict = Rounded(o.result.name, grid.bits, float(errors.sum() / energy), after, bool(better.any()))
        said = f"{better.sum()} of {better.size} channels rounded"
        ctx.log.debug("%s: %s: %s, error %.3g -> %.3g", self.name, verdict.layer, said, verdict.before, after)
        if not verdict.accepted:
            return verdict, ()
        kept = np.where(better[..., None], best, near)
        scales = tuple(
            new if b else old for new, old, b in zip(grid.scale, _grid(weight).scale, better.flat, strict=False)
        )
        made = constant(weight.name, kept.reshape(weights.shape).astype(np.float32), quant=replace(grid, scale=scales))
        shift = fit.shift(real, kept).reshape(-1)
        return verdict, (made, constant(o.operands[2].name, (bias + shift).astype(np.float32)))

    def _rounded(
        self, real: Array, grid: Quant, fit: Moments, judge: Judge, shape: tuple[int, ...]
    ) -> tuple[Array, Quant]:
        """Towards ``real``, or in those rows where it helps on ``judge`` towards what makes up for upstream error."""
        own, cross = fit.centred()
        target = real
        if fit.drift is not None:
            found = compensated(real, own, cross, self.damping)
            helps = judge.errors(real, found) < judge.errors(real, real)
            target = np.where(helps[..., None], found, real)
        return round_on(target, own, grid, shape, self.damping, _SOLVERS[self.method])


def _grid(weight: Value) -> Quant:
    if weight.type.quant is None:
        raise PassError(f"%{weight.name} lies on no grid: quantize gives it one")
    return weight.type.quant


def _snapped(weight: Value, weights: Array) -> Array:
    grid = _grid(weight)
    return grid.dequantize(grid.quantize(weights))


def _total(moments: Iterable[Moments]) -> Moments:
    rest = iter(moments)
    first = next(rest)
    for other in rest:
        first.add(other)
    return first
