"""What bit assignment is about: layers, activations, the widths that each may take, sensitivities, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import constants, producers
from qcc.ir.types import Quant
from qcc.passmgr.candidates import LayerFacts
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import DeviceCosts
from qcc.passmgr.latency import LatencyTable
from qcc_passes.activations import Site, activation_sites, fit
from qcc_passes.assignment import Choice, Group
from qcc_passes.costs import LATENCY, PEAK, CostModel
from qcc_passes.facts import BitPlan, Ranges, WeightBlocks
from qcc_passes.head import Head
from qcc_passes.perturbation import Option, Perturbations
from qcc_passes.scoring import Score, Scorer, Trial
from qcc_passes.sensitivity import Sensitivities
from qcc_passes.variants import Variant, Variants, round_plainly

Array = NDArray[Any]

DEFAULT_BITS: Final = 8
"""Activation bits where none are chosen."""


@dataclass(frozen=True, slots=True)
class Program:
    """One objective: predicted nats per sample of each option, with a Gram matrix also of each pair."""

    objective: str
    own: Mapping[Option, float]
    perturbations: Perturbations | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What all programs share: layers, sites, widths, costs, and weights to score with."""

    top: Head
    sites: tuple[Site, ...]
    widths: Mapping[str, tuple[int, ...]]
    site_widths: tuple[int, ...]
    costs: CostModel
    arrays: Mapping[str, Array]
    rounded: Variants
    ranges: Ranges | None

    @classmethod
    def of(
        cls, top: Head, widths: Mapping[str, tuple[int, ...]], site_widths: tuple[int, ...], ctx: PassContext
    ) -> Scene:
        """Of what was measured; ``site_widths`` are empty where activations keep their width."""
        sites = activation_sites(top.graph) if site_widths else ()
        everything, made_by = constants(top.graph), producers(top.graph)
        arrays = {layer.weight: everything[layer.weight] for layer in top.layers}
        measured = ctx.facts.find(Perturbations)
        known = measured.weights if measured is not None and measured.weights is not None else {}
        rounded = {
            (layer.name, bits): known[layer.name, bits]
            if (layer.name, bits) in known
            else Variant(round_plainly(arrays[layer.weight], bits), everything[made_by[layer.name].operands[2].name])
            for layer in top.layers
            for bits in widths[layer.name]
        }
        blocks = ctx.facts.find(WeightBlocks)
        costs = CostModel.of(
            top.graph, top.layers, sites, ctx.facts.find(LatencyTable), blocks, ctx.facts.find(DeviceCosts)
        )
        return cls(top, sites, widths, site_widths, costs, arrays, rounded, ctx.facts.find(Ranges))

    def programs(self, objectives: Sequence[str], ctx: PassContext) -> list[Program]:
        """One program per objective whose fact is there. Raises PassError when none is."""
        perturbed = ctx.facts.find(Perturbations)
        curvatures = ctx.facts.find(Sensitivities)
        own = self._own(perturbed)
        found: list[Program] = []
        if perturbed is not None:
            if "pairwise" in objectives:
                found.append(Program("pairwise", own, perturbed))
            if "separate" in objectives:
                found.append(Program("separate", own))
            loss = perturbed.loss_change()
            if "labels" in objectives and loss is not None:
                found.append(Program("labels", {**own, **{k: max(v, 0.0) for k, v in loss.items()}}))
        if curvatures is not None and "curvature" in objectives:
            for method, sensitivity in sorted(curvatures.by_method.items()):
                found.append(Program(method, {**own, **self._omega(sensitivity.curvature)}))
        if not found:
            raise PassError(
                "mixed-precision needs sensitivities: run sensitivity-gauss-newton or -perturbation before it"
            )
        return found

    def _own(self, perturbed: Perturbations | None) -> dict[Option, float]:
        """Each option's own perturbation. Raises PassError where activations are to be chosen and were not measured."""
        own = perturbed.own() if perturbed is not None else {}
        for site in self.sites:
            for bits in self.site_widths:
                if ("activation", site.name, bits) not in own:
                    raise PassError(
                        f"mixed-precision: what {bits}-bit %{site.name} does was not measured; "
                        "give sensitivity-perturbation the same activation_bits"
                    )
        return own

    def _omega(self, curvature: Mapping[str, float]) -> dict[Option, float]:
        """HAWQ-V2's Omega halved: mean trace times the squared error of rounding to nearest, in nats."""
        return {
            ("weight", layer.name, bits): curvature[layer.name] / 2 * _squared_error(self.arrays[layer.weight], bits)
            for layer in self.top.layers
            for bits in self.widths[layer.name]
        }

    def groups(self, program: Program) -> list[Group]:
        """A group per layer, and one per site whose bits are to be chosen."""
        fixed = self.costs.fixed_memory()
        groups = []
        for index, layer in enumerate(self.top.layers):
            site = self.costs.reads.get(layer.name)
            choices = []
            for bits in self.widths[layer.name]:
                sensitivity = program.own.get(("weight", layer.name, bits), 0.0)
                for width in self.site_widths if site is not None else (None,):
                    costs = self.costs.layer(layer, bits, width) | (fixed if index == 0 else {})
                    choices.append(Choice(bits, width or DEFAULT_BITS, sensitivity, costs))
            groups.append(Group(layer.name, tuple(choices), site))
        free = dict.fromkeys((name for name in groups[0].choices[0].costs if not name.startswith(PEAK)), 0.0)
        for site_ in self.sites:
            own = [program.own["activation", site_.name, bits] for bits in self.site_widths]
            options = (
                Choice(0, bits, value, free | self.costs.site(site_.name, bits))
                for bits, value in zip(self.site_widths, own, strict=True)
            )
            groups.append(Group(site_.name, tuple(options), site_.name))
        return groups

    def options(self, groups: Sequence[Group]) -> list[Option]:
        """The option behind every choice, in order."""
        return [
            ("weight", g.name, c.weight_bits) if c.weight_bits else ("activation", g.name, c.activation_bits)
            for g in groups
            for c in g.choices
        ]

    def weight_bits(self, picks: Sequence[int]) -> dict[str, int]:
        """Bits by layer."""
        chosen = zip(self.top.layers, picks, strict=False)
        per_width = {layer.name: self._activation_choices(layer.name) for layer in self.top.layers}
        return {layer.name: self.widths[layer.name][pick // per_width[layer.name]] for layer, pick in chosen}

    def activation_bits(self, picks: Sequence[int]) -> dict[str, int]:
        """Bits by site."""
        chosen = zip(self.sites, picks[len(self.top.layers) :], strict=True)
        return {site.name: self.site_widths[pick] for site, pick in chosen}

    def _activation_choices(self, layer: str) -> int:
        return len(self.site_widths) if layer in self.costs.reads else 1

    def by_value(self, site_bits: Mapping[str, int]) -> dict[str, int]:
        """Bits by activation, from those by site."""
        return {value: site_bits[site.name] for site in self.sites for value in site.values}

    def score(self, picks: Sequence[int], scorer: Scorer, trial: Trial | None) -> Score:
        """With these choices: as ``trial`` compiles them, or else with each layer rounded by itself.

        In the latter case too, activations that were observed lie on their grids.
        """
        weight_bits, site_bits = self.weight_bits(picks), self.activation_bits(picks)
        if trial is not None:
            return scorer.judge(trial.model(BitPlan(weight_bits, self.by_value(site_bits)), list(self.top.axes)))
        variants = {layer.name: self.rounded[layer.name, weight_bits[layer.name]] for layer in self.top.layers}
        grids: dict[str, Quant] = {}
        if self.ranges is not None:
            for site in activation_sites(self.top.graph):
                quant = fit(site, self.ranges, site_bits.get(site.name, DEFAULT_BITS))
                grids |= dict.fromkeys(site.roots, quant)
        return scorer.score(variants, grids)

    def facts(self, programs: Sequence[Program]) -> tuple[LayerFacts, ...]:
        """The layers, for the report."""
        found = []
        for layer in self.top.layers:
            widths = self.widths[layer.name]
            costs = {bits: self.costs.layer(layer, bits, None) for bits in widths}
            by_objective = {
                p.objective: {bits: p.own.get(("weight", layer.name, bits), 0.0) for bits in widths} for p in programs
            }
            size = {bits: int(c["size"]) for bits, c in costs.items()}
            seconds = {bits: c[LATENCY] for bits, c in costs.items() if LATENCY in c}
            found.append(LayerFacts(layer.name, layer.kind, layer.parameters, layer.macs, by_objective, size, seconds))
        return tuple(found)


def _squared_error(weights: Array, bits: int) -> float:
    return float(np.square(round_plainly(weights, bits) - weights, dtype=np.float64).sum())
