"""Second-order sensitivity of each layer's weights, from first-order backward passes.

With L the mean over samples of KL(p_fp32 || p_theta), the Hessian at theta = fp32 equals the
generalized Gauss-Newton matrix J^T S J, S = diag(p) - p p^T: no labels are needed, and one
backward pass of a random cotangent c with E[c c^T] = S gives an unbiased probe of its trace.
Outputs that are no logits take S = diag(1/variance).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import Graph, live
from qcc.verify.interp import RULES
from qcc_passes.layers import Layer, layers
from qcc_passes.vjp import backward

Array = NDArray[Any]
Inputs = Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Head:
    """The output that sensitivity is measured at: logits over the last axis, or plain numbers."""

    graph: Graph
    output: str
    logits: bool


def head(graph: Graph) -> Head:
    """The graph cut off before a final softmax or argmax, and what kind of output it then has.

    Raises PassError for a graph with several outputs or none that depends on a layer.
    """
    if len(graph.outputs) != 1:
        names = ", ".join(v.name for v in graph.outputs)
        raise PassError(f"sensitivity takes a graph with one output; this one has {names}")
    made_by = {o.result.name: o for o in graph.ops}
    value = graph.outputs[0]
    ended = False
    while (o := made_by.get(value.name)) is not None and o.kind in ("softmax", "argmax"):
        value, ended = o.operands[0], True
    cut = replace(graph, ops=live(graph.ops, (value,)), outputs=(value,))
    classes = value.type.shape[-1] if value.type.rank else 1
    return Head(cut, value.name, ended or (value.type.rank == 2 and classes > 1))


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def gauss_newton_cotangent(top: Head, output: Array, spread: Array, rng: np.random.Generator) -> Array:
    """A random c with E[c c^T] = S per sample: sqrt(p) u - p (sqrt(p)^T u), u Rademacher."""
    u = rng.choice(np.array([-1.0, 1.0]), size=output.shape)
    if not top.logits:
        return (u / spread).astype(output.dtype)
    p = softmax(output)
    root = np.sqrt(p)
    c: Array = root * u - p * (root * u).sum(axis=-1, keepdims=True)
    return c.astype(output.dtype)


def probe_gauss_newton(
    top: Head, inputs: Inputs, spread: Array, probes: int, rng: np.random.Generator
) -> dict[str, list[float]]:
    """Per layer, ``probes`` unbiased estimates of the trace of this batch's summed Gauss-Newton block."""
    values = run(top.graph, inputs)
    names = {layer.weight: layer.name for layer in layers(top.graph)}
    found: dict[str, list[float]] = {name: [] for name in names.values()}
    for _ in range(probes):
        seed = gauss_newton_cotangent(top, values[top.output], spread, rng)
        for weight, grad in backward(top.graph, values, {top.output: seed}, names).items():
            found[names[weight]].append(float(np.square(grad, dtype=np.float64).sum()))
    return found


def run(graph: Graph, inputs: Inputs, weights: Inputs | None = None) -> dict[str, Array]:
    """Every value of a FLOAT graph, by name, in the precision of ``inputs`` (float32 or float64).

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


LossGradient = Callable[[Array], Array]
"""The cotangent of the mean loss at an output."""


def cross_entropy_gradient(labels: Array) -> LossGradient:
    """d/dz of the mean cross-entropy of logits z against integer labels."""

    def gradient(z: Array) -> Array:
        p = softmax(z)
        p[np.arange(len(labels)), labels] -= 1
        return p / len(labels)

    return gradient


def kl_gradient(reference: Array) -> LossGradient:
    """d/dz of the mean KL(softmax(reference) || softmax(z)); its Hessian at z = reference is S."""

    def gradient(z: Array) -> Array:
        difference: Array = (softmax(z) - softmax(reference)) / len(z)
        return difference

    return gradient


def hessian_vector(
    top: Head, inputs: Inputs, loss: LossGradient, direction: Mapping[str, Array], step: float
) -> dict[str, Array]:
    """H v for the mean loss, by central differences of the gradient along ``direction``.

    ``direction`` maps weights to arrays of their shapes; the result has the same keys.
    """
    ends = []
    precision = next(iter(inputs.values())).dtype
    arrays = {o.result.name: o.array for o in top.graph.ops if o.kind == "constant"}
    for sign in (1.0, -1.0):
        moved = {n: (arrays[n] + sign * step * v).astype(precision) for n, v in direction.items()}
        values = run(top.graph, inputs, moved)
        ends.append(backward(top.graph, values, {top.output: loss(values[top.output])}, direction))
    return {name: (ends[0][name] - ends[1][name]) / (2 * step) for name in direction}


def weight_layers(top: Head) -> tuple[Layer, ...]:
    """The layers that the output depends on. Raises PassError when there is none."""
    found = layers(top.graph)
    if not found:
        raise PassError("the graph has no conv2d or dense with constant weights, so there are no bits to choose")
    return found
