"""Sensitivity by perturbation: what quantizing one layer alone does to the output.

For every layer and weight width, delta is the change of the logits on calibration data. Stacked as
rows of T with each sample's delta multiplied by B = diag(sqrt p) - sqrt(p) p^T (so that
B^T B = S = diag(p) - p p^T), the Gram matrix A = T T^T / samples is the second-order KL of every
pair of choices: its diagonal is each choice's own, the rest the inter-layer terms that a sum of
per-layer sensitivities leaves out. It is positive semidefinite by construction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.interp import RULES
from qcc_passes.curvature import Array, Head, head, run, softmax, weight_layers
from qcc_passes.layers import Layer
from qcc_passes.rounding import nearest, search_scale
from qcc_passes.sensitivity import output_spread


@dataclass(frozen=True, slots=True)
class Perturbations:
    """``gram[i, j]`` is the second-order KL (nats per sample) of options i and j; options are (layer, bits)."""

    options: tuple[tuple[str, int], ...]
    gram: NDArray[np.float64]
    samples: int

    def of(self, wanted: Sequence[tuple[str, int]]) -> NDArray[np.float64]:
        """The Gram matrix over ``wanted``; options that were never perturbed count as exact."""
        index = {option: i for i, option in enumerate(self.options)}
        found: NDArray[np.float64] = np.zeros((len(wanted), len(wanted)))
        known = [(row, index[option]) for row, option in enumerate(wanted) if option in index]
        rows, columns = [r for r, _ in known], [c for _, c in known]
        found[np.ix_(rows, rows)] = self.gram[np.ix_(columns, columns)]
        return found


class MeasurePerturbations(Pass):
    """Change of the output when one layer's weights alone are rounded: all layers, all widths."""

    name: ClassVar[str] = "sensitivity-perturbation"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (Perturbations,)

    weight_bits: tuple[int, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)
    samples: int = Field(default=128, ge=1, description="calibration samples to use; 512 rank pairs best")
    batch: int = Field(default=16, ge=1, description="samples per forward pass")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        top = head(graph)
        total = min(self.samples, data.samples)
        if total < 64:
            ctx.log.warning("%s: %d samples overfit the inter-layer terms; 512 would do", self.name, total)
        variants = {layer.name: self._variants(top, layer) for layer in weight_layers(top)}
        options = tuple((name, bits) for name in variants for bits in self.weight_bits)
        spread = output_spread(top, data, self.batch, total)
        gram = np.zeros((len(options), len(options)))
        seen = 0
        for inputs in data.batches(self.batch, total):
            rows = self._rows(top, inputs, variants, spread)
            gram += rows @ rows.T
            seen += len(next(iter(inputs.values())))
            ctx.progress(self.name, seen, total)
        ctx.facts.put(Perturbations(options, gram / total, total))
        return graph

    def _variants(self, top: Head, layer: Layer) -> list[Array]:
        """The layer's weights rounded to nearest at each width."""
        array = next(o.array for o in top.graph.ops if o.result.name == layer.weight)
        rows = array.astype(np.float64).reshape(len(array), -1)
        plain = np.ones(rows.shape[1])
        rounded = (nearest(rows, search_scale(rows, plain, bits), bits).weights for bits in self.weight_bits)
        return [r.reshape(array.shape).astype(np.float32) for r in rounded]

    def _rows(
        self, top: Head, inputs: Mapping[str, Array], variants: Mapping[str, list[Array]], spread: Array
    ) -> NDArray[np.float64]:
        """T for one batch: [options, samples * outputs]."""
        values = run(top.graph, inputs)
        output = values[top.output]
        rows = []
        for layer in weight_layers(top):
            suffix = after(top.graph, layer.name)
            for weights in variants[layer.name]:
                delta = rerun(suffix, {**values, layer.weight: weights})[top.output] - output
                rows.append(whitened(top, output, delta.astype(np.float64), spread).ravel())
        return np.array(rows)


def whitened(top: Head, output: Array, delta: Array, spread: Array) -> Array:
    """B delta, whose squared norm is twice the second-order KL of each sample."""
    if not top.logits:
        plain: Array = delta / spread
        return plain
    p = softmax(output.astype(np.float64))
    centred: Array = np.sqrt(p) * (delta - (p * delta).sum(axis=-1, keepdims=True))
    return centred


def after(graph: Graph, name: str) -> Graph:
    """The operations that compute ``name`` and all that depends on it."""
    found = {name}
    ops = []
    for o in graph.ops:
        if o.result.name == name or any(v.name in found for v in o.operands):
            found.add(o.result.name)
            ops.append(o)
    inputs = {v.name: v for o in ops for v in o.operands if v.name not in found}
    return replace(graph, inputs=tuple(inputs.values()), ops=tuple(ops))


def rerun(suffix: Graph, values: dict[str, Array]) -> dict[str, Array]:
    """Recompute the values of ``suffix`` in place of those in ``values``."""
    for o in suffix.ops:
        values[o.result.name] = RULES[o.kind](o, [values[v.name] for v in o.operands])
    return values
