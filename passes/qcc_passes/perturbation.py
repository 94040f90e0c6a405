"""Sensitivity by perturbation: what rounding one layer's weights, or one activation, alone does to the outputs.

For every choice, delta is the change of the outputs on calibration data. Stacked as rows of T with
each sample's delta multiplied by B, where B^T B = S (for logits B = diag(sqrt p) - sqrt(p) p^T), the
Gram matrix A = T T^T / samples is the second-order KL of every pair of choices: its diagonal is each
choice's own, the rest the inter-layer terms that a sum of per-layer sensitivities leaves out. It is
positive semidefinite by construction.

``exact`` runs what follows the change again, once per choice. ``linear`` multiplies the change of the
layer's own output with the cotangent there of ``probes`` random c, E[c c^T] = S: one backward pass
serves all choices, and the Gram matrix is that of the first-order change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Stage
from qcc.ir.types import Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.activations import Site, activation_sites, fit
from qcc_passes.checkpoint import Checkpoint
from qcc_passes.facts import Ranges
from qcc_passes.head import Head, fitting_part, head
from qcc_passes.perturbed import ExactRows, LinearRows
from qcc_passes.samples import samples_in
from qcc_passes.sensitivity import label_batches, spread_of
from qcc_passes.variants import Variants, round_layers

Array = NDArray[Any]
Option = tuple[Literal["weight", "activation"], str, int]
"""Weights of a layer, or the activations of a site, by name, at so many bits."""
Method = Literal["auto", "exact", "linear"]

_EXACT_MACS = 4e12
"""The most multiply-accumulates that ``auto`` spends on exact changes: minutes on two cores."""


@dataclass(frozen=True, slots=True)
class Perturbations:
    """``gram[i, j]`` is the second-order KL (nats per sample) of options i and j, twice over.

    ``loss[i]`` is the change of the labelled cross-entropy by option i, where labels were given and
    the changes are exact. ``weights`` are those that were tried.
    """

    options: tuple[Option, ...]
    gram: NDArray[np.float64]
    samples: int
    method: str
    loss: NDArray[np.float64] | None = None
    weights: Variants | None = None

    def of(self, wanted: list[Option]) -> NDArray[np.float64]:
        """The Gram matrix over ``wanted``; options that were never perturbed count as exact."""
        index = {option: i for i, option in enumerate(self.options)}
        found: NDArray[np.float64] = np.zeros((len(wanted), len(wanted)))
        known = [(row, index[option]) for row, option in enumerate(wanted) if option in index]
        rows, columns = [r for r, _ in known], [c for _, c in known]
        found[np.ix_(rows, rows)] = self.gram[np.ix_(columns, columns)]
        return found

    def own(self) -> dict[Option, float]:
        """Each option's second-order KL, nats per sample."""
        return dict(zip(self.options, (np.diag(self.gram) / 2).tolist(), strict=True))

    def loss_change(self) -> dict[Option, float] | None:
        """Each option's change of the labelled loss, nats per sample, where it was measured."""
        return None if self.loss is None else dict(zip(self.options, self.loss.tolist(), strict=True))

    def report(self) -> dict[str, Any]:
        """Plain data for a report."""
        loss = self.loss_change() or {}
        rows = [
            {"kind": kind, "name": name, "bits": bits, "kl": own} | ({"loss": loss[kind, name, bits]} if loss else {})
            for (kind, name, bits), own in self.own().items()
        ]
        return {"method": self.method, "samples": self.samples, "options": rows}


class MeasurePerturbations(Pass):
    """Change of the outputs when one layer's weights or one activation alone are rounded: all of them, all widths.

    Weights are rounded as a compilation rounds them, on their fp32 inputs. Activations take part where
    ``activation_bits`` names widths; they need what ``calibrate`` measures. With labels, the change of
    the labelled loss is measured as well (``exact`` only).
    """

    name: ClassVar[str] = "sensitivity-perturbation"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (Perturbations,)

    weight_bits: tuple[int, ...] = Field(default=(2, 3, 4, 5, 6, 8), min_length=1)
    activation_bits: tuple[int, ...] = ()
    method: Method = "auto"
    samples: int = Field(default=256, ge=1, description="calibration samples to use; 512 rank pairs best")
    batch: int = Field(default=16, ge=1, description="samples per pass, where the model leaves it open")
    held_out: float = Field(default=0.4, ge=0, lt=1, description="share of the data that is left for mixed-precision")
    probes: int = Field(default=4, ge=1, description="random cotangents per batch (linear)")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph as it is; the fact is put into ``ctx``. Raises ConfigError, PassError."""
        data = ctx.facts.get(CalibrationData)
        data.check(graph)
        top = head(graph)
        batches = top.batches(fitting_part(data, self.held_out), self.batch, self.samples)
        total = sum(map(samples_in, batches))
        if total < 64:
            ctx.log.warning("%s: %d samples overfit the inter-layer terms; 512 would do", self.name, total)
        weights = round_layers(top, {layer.name: self.weight_bits for layer in top.layers}, batches, ctx)
        sites = activation_sites(top.graph) if self.activation_bits else ()
        grids = self._grids(sites, ctx)
        options: list[Option] = [("weight", *key) for key in weights]
        options += [("activation", *key) for key in grids]
        method = self._method(top, len(options), total)
        spread = spread_of(top, ctx, self.batch, total)
        rows: ExactRows | LinearRows
        if method == "exact":
            rows = ExactRows(top, weights, sites, grids, spread, ctx.threads, label_batches(top, batches, data))
        else:
            rows = LinearRows(top, weights, sites, grids, spread, ctx, self.probes)
        kept = self._checkpoint(top, grids, method, total, ctx)
        sums = kept.accumulate(self.name, batches, rows.sums)
        loss = sums["loss"] / total if "loss" in sums else None
        ctx.facts.put(Perturbations(tuple(options), sums["gram"] / total, total, method, loss, weights))
        return graph

    def _grids(self, sites: tuple[Site, ...], ctx: PassContext) -> dict[tuple[str, int], Quant]:
        if not sites:
            return {}
        ranges = ctx.facts.get(Ranges)
        return {(site.name, bits): fit(site, ranges, bits) for site in sites for bits in self.activation_bits}

    def _method(self, top: Head, options: int, total: int) -> str:
        """Exact changes where they are affordable: each runs half of the network on average."""
        if self.method != "auto":
            return self.method
        return "exact" if sum(layer.macs for layer in top.layers) * options * total / 2 <= _EXACT_MACS else "linear"

    def _checkpoint(
        self, top: Head, grids: Mapping[tuple[str, int], Quant], method: str, total: int, ctx: PassContext
    ) -> Checkpoint:
        options = self.model_dump(mode="json", exclude={"method"})
        return Checkpoint.of(self.name, top.graph, ctx, options, method, total, sorted(map(str, grids.items())))
