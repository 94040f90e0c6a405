"""Sensitivity passes: how much a change of each layer's weights moves the model's outputs.

Each adds to the fact ``Sensitivities`` one curvature per layer, to be multiplied by the squared norm
of the weights' quantization error (HAWQ-V2, arXiv:1911.03852, eq. 10). Results are kept in the
context's cache, partial ones too, so that an interrupted measurement goes on where it stopped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import ConfigError
from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Stage, constants
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.checkpoint import Checkpoint
from qcc_passes.curvature import (
    LossGradient,
    Network,
    cross_entropy_gradient,
    hessian_vector,
    output_spread,
    probe_gauss_newton,
)
from qcc_passes.head import Head, fitting_part, head
from qcc_passes.samples import samples_in

Array = NDArray[Any]
Batch = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """``curvature[layer]`` per weight (mean trace) or for the worst direction (top eigenvalue).

    ``error`` is the standard error of each estimate, where the method has one.
    """

    method: str
    curvature: Mapping[str, float]
    error: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sensitivities:
    """All that was measured, by the name of the pass that did."""

    by_method: Mapping[str, Sensitivity]

    def report(self) -> dict[str, Any]:
        """Plain data for a report."""
        return {
            name: {"curvature": dict(s.curvature), "error": dict(s.error)} for name, s in sorted(self.by_method.items())
        }


class SensitivityPass(Pass):
    """What the methods share: data, batches, the cache."""

    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (Sensitivities,)
    advised: ClassVar[int] = 128
    """Samples below which the estimate is noise for the most part."""

    samples: int = Field(default=256, ge=1, description="calibration samples to use")
    batch: int = Field(default=8, ge=1, description="samples per backward pass, where the model leaves it open")
    held_out: float = Field(default=0.4, ge=0, lt=1, description="share of the data that is left for mixed-precision")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph as it is; the fact is put into ``ctx``. Raises ConfigError, PassError."""
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        top = head(graph)
        batches = top.batches(fitting_part(data, self.held_out), self.batch, self.samples)
        if (total := sum(map(samples_in, batches))) < min(self.advised, self.samples):
            ctx.log.warning("%s: %d samples are few to rank layers by; %d would do", self.name, total, self.advised)
        kept = Checkpoint.of(self.name, top.graph, ctx, self.model_dump(mode="json"), total)
        found = self.measure(top, batches, kept, ctx)
        known = ctx.facts.find(Sensitivities)
        ctx.facts.put(Sensitivities({**(known.by_method if known else {}), self.name: found}))
        return graph

    @abstractmethod
    def measure(self, top: Head, batches: list[Batch], kept: Checkpoint, ctx: PassContext) -> Sensitivity:
        """The curvature of every layer on ``batches``."""


class GaussNewtonTrace(SensitivityPass):
    """Mean trace of each layer's Gauss-Newton block, from unlabelled data by first-order probes."""

    name: ClassVar[str] = "sensitivity-gauss-newton"

    probes: int = Field(default=4, ge=1, description="random cotangents per batch")

    def measure(self, top: Head, batches: list[Batch], kept: Checkpoint, ctx: PassContext) -> Sensitivity:
        network = Network(top, ctx.threads)
        total = sum(map(samples_in, batches))
        spread = spread_of(top, ctx, self.batch, total)

        def step(index: int, inputs: Batch) -> dict[str, Array]:
            return probe_gauss_newton(network, inputs, spread, self.probes, np.random.default_rng([ctx.seed, index]))

        traces = kept.accumulate(self.name, batches, step)
        sizes = {layer.name: layer.parameters for layer in top.layers}
        return estimate(self.name, {name: row / (total * sizes[name]) for name, row in traces.items()})


class HutchinsonTrace(SensitivityPass):
    """Mean trace of each layer's Hessian of the cross-entropy, by Hutchinson's estimator (HAWQ-V2)."""

    name: ClassVar[str] = "sensitivity-hutchinson"

    probes: int = Field(default=4, ge=1, description="random directions per batch")
    step: float = Field(default=1e-3, gt=0, description="finite-difference step, relative to the weights' norm")

    def measure(self, top: Head, batches: list[Batch], kept: Checkpoint, ctx: PassContext) -> Sensitivity:
        losses = labelled_losses(top, batches, ctx)
        total = sum(map(samples_in, batches))
        arrays = _weights(top)

        def step(index: int, inputs: Batch) -> dict[str, Array]:
            rng = np.random.default_rng([ctx.seed, index])
            traces = {layer.name: np.zeros(self.probes) for layer in top.layers}
            share = samples_in(inputs) / total
            for probe in range(self.probes):
                direction, size = random_direction(arrays, rng, self.step)
                product = hessian_vector(top, inputs, losses[index], direction, size, ctx.threads)
                for layer in top.layers:
                    dot = float((product[layer.weight] * direction[layer.weight]).sum(dtype=np.float64))
                    traces[layer.name][probe] = dot * share / layer.parameters
            return traces

        return estimate(self.name, kept.accumulate(self.name, batches, step))


class TopEigenvalue(SensitivityPass):
    """Largest eigenvalue of each layer's Hessian block, by power iteration (HAWQ, arXiv:1905.03696)."""

    name: ClassVar[str] = "sensitivity-eigenvalue"
    advised: ClassVar[int] = 32

    samples: int = Field(default=32, ge=1, description="calibration samples to use, all in each iteration")
    iterations: int = Field(default=12, ge=1, description="power iterations per layer, at most")
    tolerance: float = Field(default=1e-2, gt=0, description="relative change that ends the iteration")
    step: float = Field(default=1e-3, gt=0, description="finite-difference step, relative to the weights' norm")

    def measure(self, top: Head, batches: list[Batch], kept: Checkpoint, ctx: PassContext) -> Sensitivity:
        losses = labelled_losses(top, batches, ctx)
        arrays = _weights(top)
        names = [layer.name for layer in top.layers]

        def step(index: int, weight: str) -> dict[str, Array]:
            rng = np.random.default_rng([ctx.seed, index])
            pairs = list(zip(batches, losses, strict=True))
            return {names[index]: np.array(self._power(top, weight, arrays[weight], pairs, rng, ctx.threads))}

        found = kept.accumulate(self.name, [layer.weight for layer in top.layers], step)
        return Sensitivity(self.name, {name: float(value) for name, value in found.items()}, {})

    def _power(
        self,
        top: Head,
        weight: str,
        array: Array,
        batches: list[tuple[Batch, LossGradient]],
        rng: np.random.Generator,
        threads: int,
    ) -> float:
        total = sum(samples_in(inputs) for inputs, _ in batches)
        v = rng.normal(size=array.shape)
        value = 0.0
        for _ in range(self.iterations):
            v /= max(float(np.linalg.norm(v)), 1e-30)
            step = self.step * max(float(np.linalg.norm(array)), 1e-6)
            product = np.zeros_like(v)
            for inputs, loss in batches:
                share = samples_in(inputs) / total
                product += share * hessian_vector(top, inputs, loss, {weight: v}, step, threads)[weight]
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


def spread_of(top: Head, ctx: PassContext, size: int, limit: int) -> dict[str, Array]:
    """``output_spread`` on the calibration data."""
    model = OrtModel(export_onnx(top.graph), threads=ctx.threads)
    return output_spread(top, ctx.facts.get(CalibrationData), model, size, limit)


def labelled_losses(top: Head, batches: list[Batch], ctx: PassContext) -> list[LossGradient]:
    """The gradient of each batch's cross-entropy; without labels, against the model's own top-1.

    Raises ConfigError when labels do not fit the samples or the classes, or the output is no logits.
    """
    output = top.classifier
    labels = label_batches(top, batches, ctx.facts.get(CalibrationData))
    if labels is None:
        model = OrtModel(export_onnx(top.graph), threads=ctx.threads)
        labels = [model.run(inputs)[output].argmax(axis=-1) for inputs in batches]
    return [cross_entropy_gradient(output, truth) for truth in labels]


def label_batches(top: Head, batches: list[Batch], data: CalibrationData) -> list[Array] | None:
    """The labels of each batch; None where there are none, or no classes that they could name.

    Raises ConfigError when they do not fit the samples or the classes.
    """
    if data.labels is None or not top.classifies:
        return None
    labels, classes = np.asarray(data.labels), top.graph.outputs[0].type.shape[-1]
    if len(labels) != data.samples:
        raise ConfigError(f"{len(labels)} labels do not fit {data.samples} samples")
    if labels.min() < 0 or labels.max() >= classes:
        raise ConfigError(f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    bounds = np.cumsum([samples_in(inputs) for inputs in batches])
    return np.split(labels[: bounds[-1]], bounds[:-1])


def random_direction(arrays: Mapping[str, Array], rng: np.random.Generator, relative: float) -> tuple[Batch, float]:
    """Rademacher directions for all weights, and a step of ``relative`` times their norm."""
    direction = {n: rng.choice(np.array([-1.0, 1.0]), size=a.shape).astype(a.dtype) for n, a in arrays.items()}
    norm = np.sqrt(sum(float(np.square(a, dtype=np.float64).sum()) for a in arrays.values()))
    size = np.sqrt(sum(a.size for a in arrays.values()))
    return direction, relative * max(float(norm / size), 1e-6)


def _weights(top: Head) -> dict[str, Array]:
    arrays = constants(top.graph)
    return {layer.weight: arrays[layer.weight] for layer in top.layers}
