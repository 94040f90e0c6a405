"""Second-order sensitivity of each layer's weights, from first-order backward passes.

With L the mean over samples of KL(p_fp32 || p_theta), the Hessian at theta = fp32 equals the
generalized Gauss-Newton matrix J^T S J, S = diag(p) - p p^T: no labels are needed, and one
backward pass of a random cotangent c with E[c c^T] = S gives an unbiased probe of its trace.
Outputs that are no logits take S = diag(1/variance); several outputs add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Op, rewrite
from qcc.ir.graph import constant as constant_op
from qcc.passmgr.facts import CalibrationData
from qcc.verify.interp import RULES
from qcc.verify.ort import OrtModel
from qcc_passes.backward import Backward
from qcc_passes.head import Head, softmax

Array = NDArray[Any]
Arrays = Mapping[str, Array]

LossGradient = Callable[[Arrays], dict[str, Array]]
"""The cotangents of the mean loss, at the outputs, from these."""


class Network:
    """A headed FLOAT graph that runs forwards and backwards, both by onnxruntime where it can."""

    def __init__(self, top: Head, threads: int, weights: Arrays | None = None) -> None:
        """``weights`` replace constants of their names."""
        graph = with_constants(top.graph, weights) if weights else top.graph
        kept = [o.result.name for o in graph.ops if o.kind != "constant" and o.result.type.dtype == "f32"]
        self.top = top
        self._forward = OrtModel(export_onnx(graph, keep=kept), threads=threads)
        self._backward = Backward(graph, threads)

    def values(self, inputs: Arrays) -> dict[str, Array]:
        """Every real value on ``inputs``, these included, by name; constants are not among them."""
        return {**inputs, **self._forward.run(inputs)}

    def walk(self, values: Arrays, seeds: Arrays) -> Iterator[tuple[Op, Array, Array]]:
        """See ``Backward.walk``."""
        return self._backward.walk(values, seeds)

    def gradients(self, values: Arrays, seeds: Arrays) -> dict[str, Array]:
        """Gradients of all layers' weights, by name, summed over the samples. Raises PassError."""
        return self._backward.weight_gradients(values, seeds, [layer.weight for layer in self.top.layers])


def with_constants(graph: Graph, arrays: Arrays) -> Graph:
    """``graph`` with other contents in the constants that ``arrays`` names."""
    return rewrite(
        graph, lambda o: [constant_op(o.result.name, arrays[o.result.name])] if o.result.name in arrays else None
    )


def gauss_newton_cotangents(
    top: Head, outputs: Arrays, spread: Arrays, rng: np.random.Generator, temperature: float = 1.0
) -> dict[str, Array]:
    """Random c with E[c c^T] = S per sample: sqrt(p) u - p (sqrt(p)^T u), u Rademacher.

    S is that of logits divided by ``temperature``, where outputs are logits.
    """
    seeds = {}
    for name, axis in top.axes.items():
        output = outputs[name]
        u = rng.choice(np.array([-1.0, 1.0]), size=output.shape)
        if axis is None:
            seeds[name] = (u / spread[name]).astype(output.dtype)
        else:
            p = softmax(output / output.dtype.type(temperature), axis)
            root = np.sqrt(p)
            seeds[name] = (root * u - p * (root * u).sum(axis=axis, keepdims=True)).astype(output.dtype)
    return seeds


def whitened(top: Head, outputs: Arrays, deltas: Arrays, spread: Arrays) -> Array:
    """B delta with B^T B = S for every sample, [N, outputs]: its squared norm is twice the second-order KL."""
    rows = []
    for name, axis in top.axes.items():
        delta = deltas[name].astype(np.float64)
        if axis is None:
            white = delta / spread[name]
        else:
            p = softmax(outputs[name].astype(np.float64), axis)
            white = np.sqrt(p) * (delta - (p * delta).sum(axis=axis, keepdims=True))
        rows.append(white.reshape(len(white), -1))
    return np.concatenate(rows, axis=1)


def output_spread(top: Head, data: CalibrationData, model: OrtModel, size: int, limit: int) -> dict[str, Array]:
    """Standard deviation of each element of the outputs that are no logits, over samples; 1 where it never changes.

    ``model`` computes the outputs.
    """
    plain = [name for name, axis in top.axes.items() if axis is None]
    if not plain:
        return {}
    outputs = [model.run(inputs) for inputs in top.batches(data, size, limit)]
    found = {}
    for name in plain:
        deviation = np.concatenate([o[name] for o in outputs]).std(axis=0, dtype=np.float64)
        found[name] = np.where(deviation > 0, deviation, 1.0)
    return found


def probe_gauss_newton(
    network: Network, inputs: Arrays, spread: Arrays, probes: int, rng: np.random.Generator
) -> dict[str, Array]:
    """Per layer, ``probes`` unbiased estimates of the trace of this batch's summed Gauss-Newton block."""
    values = network.values(inputs)
    names = {layer.weight: layer.name for layer in network.top.layers}
    found = {name: np.zeros(probes) for name in names.values()}
    for probe in range(probes):
        seeds = gauss_newton_cotangents(network.top, values, spread, rng)
        for weight, grad in network.gradients(values, seeds).items():
            found[names[weight]][probe] = float(np.square(grad, dtype=np.float64).sum())
    return found


def run(graph: Graph, inputs: Arrays, weights: Arrays | None = None) -> dict[str, Array]:
    """Every value of a FLOAT graph by numpy, in the precision of ``inputs`` (float32 or float64).

    ``weights`` replaces constants, in their own precision.
    """
    values = dict(inputs)
    precision = next(iter(inputs.values())).dtype
    for o in graph.ops:
        name = o.result.name
        if o.kind == "constant":
            values[name] = weights[name] if weights and name in weights else o.array.astype(precision, copy=False)
        else:
            values[name] = RULES[o.kind](o, [values[v.name] for v in o.operands])
    return values


def cross_entropy_gradient(output: str, labels: Array) -> LossGradient:
    """d/dz of the mean cross-entropy of logits z [N, classes] against integer labels."""

    def gradient(outputs: Arrays) -> dict[str, Array]:
        p = softmax(outputs[output], -1)
        p[np.arange(len(labels)), labels] -= 1
        return {output: p / len(labels)}

    return gradient


def kl_gradient(output: str, reference: Array) -> LossGradient:
    """d/dz of the mean KL(softmax(reference) || softmax(z)); its Hessian at z = reference is S."""

    def gradient(outputs: Arrays) -> dict[str, Array]:
        z = outputs[output]
        return {output: (softmax(z, -1) - softmax(reference, -1)) / len(z)}

    return gradient


def hessian_vector(
    top: Head, inputs: Arrays, loss: LossGradient, direction: Arrays, step: float, threads: int = 1
) -> dict[str, Array]:
    """H v for the mean loss, by central differences of the gradient along ``direction``.

    ``direction`` maps weights to arrays of their shapes; the result has the same keys. Computed in
    the precision of ``inputs``: onnxruntime's for float32, numpy's for float64.
    """
    precision = next(iter(inputs.values())).dtype
    arrays = {o.result.name: o.array for o in top.graph.ops if o.kind == "constant"}
    ends = []
    for sign in (1.0, -1.0):
        moved = {n: (arrays[n] + sign * step * v).astype(precision) for n, v in direction.items()}
        if precision == np.float64:
            values = run(top.graph, inputs, moved)
            ends.append(Backward(top.graph, threads).weight_gradients(values, loss(values), direction))
        else:
            network = Network(top, threads, moved)
            values = network.values(inputs)
            ends.append(network.gradients(values, loss(values)))
    return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in direction}
