"""Sensitivity passes: how much a change of each layer's weights moves the model's output.

Each gives the fact ``Sensitivity``: one curvature per layer, to be multiplied by the squared norm
of the weights' quantization error (HAWQ-V2, arXiv:1911.03852, eq. 10).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.curvature import (
    Array,
    Head,
    LossGradient,
    cross_entropy_gradient,
    head,
    hessian_vector,
    probe_gauss_newton,
    run,
    weight_layers,
)


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """``curvature[layer]`` per weight (mean trace) or for the worst direction (top eigenvalue).

    ``error`` is the standard error of each estimate, where the method has one.
    """

    method: str
    curvature: Mapping[str, float]
    error: Mapping[str, float]


class SensitivityPass(Pass):
    """What the methods share: data, batches, progress."""

    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (Sensitivity,)

    samples: int = Field(default=256, ge=1, description="calibration samples to use")
    batch: int = Field(default=8, ge=1, description="samples per backward pass")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        ctx.facts.put(self.measure(head(graph), data, ctx))
        return graph

    @abstractmethod
    def measure(self, top: Head, data: CalibrationData, ctx: PassContext) -> Sensitivity:
        """The curvature of every layer on ``data``."""

    def count(self, data: CalibrationData) -> int:
        return min(self.samples, data.samples)


class GaussNewtonTrace(SensitivityPass):
    """Mean trace of each layer's Gauss-Newton block, from unlabelled data by first-order probes."""

    name: ClassVar[str] = "sensitivity-gauss-newton"

    probes: int = Field(default=4, ge=1, description="random cotangents per batch")

    def measure(self, top: Head, data: CalibrationData, ctx: PassContext) -> Sensitivity:
        rng, total = ctx.rng(), self.count(data)
        spread = output_spread(top, data, self.batch, total)
        sizes = {layer.name: layer.parameters for layer in weight_layers(top)}
        traces = {name: np.zeros(self.probes) for name in sizes}
        seen = 0
        for inputs in data.batches(self.batch, total):
            for name, probes in probe_gauss_newton(top, inputs, spread, self.probes, rng).items():
                traces[name] += probes
            seen += len(next(iter(inputs.values())))
            ctx.progress(self.name, seen, total)
        means = {name: row / (total * sizes[name]) for name, row in traces.items()}
        return estimate(self.name, means)


class HutchinsonTrace(SensitivityPass):
    """Mean trace of each layer's Hessian of the cross-entropy, by Hutchinson's estimator (HAWQ-V2)."""

    name: ClassVar[str] = "sensitivity-hutchinson"

    probes: int = Field(default=4, ge=1, description="random directions per batch")
    step: float = Field(default=1e-3, gt=0, description="finite-difference step, relative to the weights' norm")

    def measure(self, top: Head, data: CalibrationData, ctx: PassContext) -> Sensitivity:
        rng, total = ctx.rng(), self.count(data)
        found = weight_layers(top)
        traces = {layer.name: np.zeros(self.probes) for layer in found}
        seen = 0
        for inputs, loss in labelled_batches(top, data, self.batch, total):
            size = len(next(iter(inputs.values())))
            for probe in range(self.probes):
                direction, step = random_direction(top, rng, self.step)
                product = hessian_vector(top, inputs, loss, direction, step)
                for layer in found:
                    dot = float((product[layer.weight] * direction[layer.weight]).sum(dtype=np.float64))
                    traces[layer.name][probe] += dot * size / (total * layer.parameters)
            seen += size
            ctx.progress(self.name, seen, total)
        return estimate(self.name, traces)


class TopEigenvalue(SensitivityPass):
    """Largest eigenvalue of each layer's Hessian block, by power iteration (HAWQ, arXiv:1905.03696)."""

    name: ClassVar[str] = "sensitivity-eigenvalue"

    samples: int = Field(default=32, ge=1, description="calibration samples to use, all in each iteration")
    iterations: int = Field(default=12, ge=1, description="power iterations per layer, at most")
    tolerance: float = Field(default=1e-2, gt=0, description="relative change that ends the iteration")
    step: float = Field(default=1e-3, gt=0, description="finite-difference step, relative to the weights' norm")

    def measure(self, top: Head, data: CalibrationData, ctx: PassContext) -> Sensitivity:
        rng, found = ctx.rng(), weight_layers(top)
        curvature = {}
        batches = list(labelled_batches(top, data, self.batch, self.count(data)))
        for done, layer in enumerate(found, 1):
            curvature[layer.name] = self._power(top, layer.weight, batches, rng)
            ctx.progress(self.name, done, len(found))
        return Sensitivity(self.name, curvature, {})

    def _power(
        self, top: Head, weight: str, batches: list[tuple[dict[str, Array], LossGradient]], rng: np.random.Generator
    ) -> float:
        array = next(o.array for o in top.graph.ops if o.result.name == weight)
        size = sum(len(next(iter(inputs.values()))) for inputs, _ in batches)
        v = rng.normal(size=array.shape)
        value = 0.0
        for _ in range(self.iterations):
            v /= max(float(np.linalg.norm(v)), 1e-30)
            step = self.step * max(float(np.linalg.norm(array)), 1e-6)
            product = np.zeros_like(v)
            for inputs, loss in batches:
                share = len(next(iter(inputs.values()))) / size
                product += share * hessian_vector(top, inputs, loss, {weight: v}, step)[weight]
            last, value = value, float((product * v).sum())
            if abs(value - last) <= self.tolerance * abs(value):
                break
            v = product
        return value


def estimate(method: str, probes: Mapping[str, Array]) -> Sensitivity:
    """Mean and standard error over independent probes of each layer's mean trace."""
    return Sensitivity(
        method,
        {name: float(row.mean()) for name, row in probes.items()},
        {name: float(row.std(ddof=1)) / len(row) ** 0.5 for name, row in probes.items() if len(row) > 1},
    )


def output_spread(top: Head, data: CalibrationData, batch: int, limit: int) -> Array:
    """Standard deviation of each output element over the samples; 1 where it never changes."""
    if top.logits:
        return np.ones(())
    outputs = np.concatenate([run(top.graph, inputs)[top.output] for inputs in data.batches(batch, limit)])
    spread: Array = outputs.std(axis=0, dtype=np.float64)
    return np.where(spread > 0, spread, 1.0)


def labelled_batches(
    top: Head, data: CalibrationData, batch: int, limit: int
) -> list[tuple[dict[str, Array], LossGradient]]:
    """Batches with the gradient of their cross-entropy; without labels, against the model's own top-1.

    Raises ConfigError when labels do not fit the samples or the classes, or the output is no logits.
    """
    if not top.logits:
        raise ConfigError("this sensitivity needs a classifier's logits; use sensitivity-gauss-newton")
    labels = data.labels
    if labels is not None and len(labels) != data.samples:
        raise ConfigError(f"{len(labels)} labels do not fit {data.samples} samples")
    found, start = [], 0
    for inputs in data.batches(batch, limit):
        size = len(next(iter(inputs.values())))
        logits = run(top.graph, inputs)[top.output]
        truth = logits.argmax(axis=-1) if labels is None else np.asarray(labels[start : start + size])
        if truth.min() < 0 or truth.max() >= logits.shape[-1]:
            raise ConfigError(f"labels must lie in 0..{logits.shape[-1] - 1}, got {truth.min()}..{truth.max()}")
        found.append((inputs, cross_entropy_gradient(truth)))
        start += size
    return found


def random_direction(top: Head, rng: np.random.Generator, relative: float) -> tuple[dict[str, Array], float]:
    """Rademacher directions for every layer's weights, and a step of ``relative`` times their norm."""
    arrays = {o.result.name: o.array for o in top.graph.ops if o.kind == "constant"}
    direction = {}
    for layer in weight_layers(top):
        signs = rng.choice(np.array([-1.0, 1.0]), size=arrays[layer.weight].shape)
        direction[layer.weight] = signs.astype(arrays[layer.weight].dtype)
    norm = np.sqrt(sum(float(np.square(arrays[n], dtype=np.float64).sum()) for n in direction))
    size = np.sqrt(sum(v.size for v in direction.values()))
    return direction, relative * max(float(norm / size), 1e-6)
