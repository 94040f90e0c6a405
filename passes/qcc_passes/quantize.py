"""Choosing a grid for every activation and weight: from FLOAT to QUANTIZED."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from numpy.typing import NDArray
from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Stage, constants
from qcc.ir.layout import Blocks
from qcc.ir.types import Dyadic, Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.facts import BitPlan, Ranges, WeightBlocks
from qcc_passes.layers import layers
from qcc_passes.quantize_attach import attach, check_ops, free_concats
from qcc_passes.quantize_grids import GridClass, grid_classes, is_cheap_to_widen, summed_bits
from qcc_passes.quantize_inputs import InputGrid, exact_grid
from qcc_passes.quantize_weights import Granularity, WeightRange, weight_quant

PROBABILITY: Final = Quant(8, False, (Dyadic(1, 8),))
"""The grid of a softmax's result: code / 256."""

_WIDE_STEPS: Final = 20
"""The largest magnitude seen takes 2**19 to 2**20 steps of a 32-bit grid; 2**11 times as much still fits."""


class Quantize(Pass):
    """Give every activation and weight its integer grid.

    Activations are unsigned, with zero point 0 where nothing is negative; values that data movement
    couples share one grid. Weights are symmetric and signed, per output channel or per tensor.
    With ``weight_block``, as many input channels, at one tap of the kernel, share an exponent of
    ``exponent_bits`` bits: their codes are mantissas of the weight bits, shifted by it. Weights of 8 bits, and
    those that read fewer channels than half a block, stay as they are. Without it, blocks are those of
    ``rearrange-blocks``, if it ran.
    A measured ``BitPlan`` overrides ``weight_bits`` and ``activation_bits`` where it names a value,
    and ``end_bits`` the weights of the first and last layer. Outputs of the graph that nothing else
    reads take a fine 32-bit grid (``wide_outputs``), averages that only dense layers read one of up
    to 16 bits where the target has them (``wide_pools``). ``inputs`` names grids of graph inputs; others
    are taken over exactly where the calibration data lie on an 8-bit grid (``exact_inputs``), or fitted.
    """

    name: ClassVar[str] = "quantize"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.QUANTIZED
    needs: ClassVar[tuple[type, ...]] = (Ranges,)

    weight_bits: int = Field(default=8, ge=2, le=8)
    activation_bits: int = Field(default=8, ge=2, le=8)
    end_bits: int | None = Field(default=8, ge=2, le=8)
    weight_granularity: Granularity = "channel"
    weight_range: WeightRange = "max"
    weight_block: int | None = Field(default=None, ge=4, le=512)
    exponent_bits: int = Field(default=2, ge=1, le=3)
    inputs: dict[str, InputGrid] = Field(default_factory=dict)
    exact_inputs: bool = True
    wide_outputs: bool = True
    wide_pools: bool = True
    wide_inputs: bool = True

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with grids. Raises ConfigError on options that do not fit, PassError on operations."""
        self._check_options(graph, ctx)
        check_ops(graph)
        fixed = self._fixed_inputs(graph, ctx)
        fixed |= {o.result.name: PROBABILITY for o in graph.ops if o.kind == "softmax"}
        graph, origin = free_concats(graph, fixed)
        grids: dict[str, Quant] = {}
        for members in grid_classes(graph):
            given = [fixed[v.name] for v in members.values if v.name in fixed]
            grid = given[0] if given else self._fit(members, graph, origin, ctx)
            grids |= {v.name: grid for v in members.values}
        widths = self._weight_bits(graph, ctx)
        plan = ctx.facts.find(BitPlan)
        groups = plan.widths if plan is not None else {}
        blocks = self._blocks(ctx)

        def weight_grid(layer: str, weights: NDArray[Any]) -> Quant:
            bits = widths.get(layer, self.weight_bits)
            layout = groups.get(layer) or blocks.of(weights.shape, bits)
            return weight_quant(weights, bits, self.weight_granularity, self.weight_range, layout)

        return attach(graph, grids, weight_grid)

    def _blocks(self, ctx: PassContext) -> WeightBlocks:
        """The blocks that share exponents: those of the options, else those that were decided on before."""
        if self.weight_block is not None:
            return WeightBlocks(Blocks(self.weight_block, self.exponent_bits))
        return ctx.facts.find(WeightBlocks) or WeightBlocks(None)

    def _check_options(self, graph: Graph, ctx: PassContext) -> None:
        for what, bits, able in (
            ("weight", self.weight_bits, ctx.capabilities.weight_bits),
            ("activation", self.activation_bits, ctx.capabilities.activation_bits),
        ):
            if bits not in able:
                choices = ", ".join(map(str, sorted(able)))
                raise ConfigError(f"quantize: the target has no {bits}-bit {what}s; set {what}_bits to {choices}")
        names = [v.name for v in graph.inputs]
        if foreign := sorted(set(self.inputs) - set(names)):
            raise ConfigError(f"quantize: a grid is given for '{foreign[0]}', but the inputs are {', '.join(names)}")

    def _fixed_inputs(self, graph: Graph, ctx: PassContext) -> dict[str, Quant]:
        """Grids of inputs that are not to be fitted: those they have, those given, those found exactly."""
        fixed = {v.name: v.type.quant for v in graph.inputs if v.type.quant is not None}
        fixed |= {name: grid.quant() for name, grid in self.inputs.items()}
        data = ctx.facts.find(CalibrationData)
        if data is None or not self.exact_inputs:
            return fixed
        for name in (v.name for v in graph.inputs if v.name not in fixed and v.name in data.arrays):
            if (grid := exact_grid(data.arrays[name])) is not None:
                fixed[name] = grid
            else:
                ctx.log.debug("input %%%s fitted: its data lie on no 8-bit grid", name)
        return fixed

    def _fit(self, members: GridClass, graph: Graph, origin: Mapping[str, str], ctx: PassContext) -> Quant:
        """A grid fitted to the distribution of what is read of a class; ``origin`` names values that equal others."""
        ranges = ctx.facts.get(Ranges)
        measured = [v.name for v in members.values if v.name not in ctx.analyses(constants, graph)]
        seen = [name for name in members.seen if name in measured] or measured
        names = list(dict.fromkeys(origin.get(name, name) for name in seen))
        if members.wide and self.wide_outputs and not any(v in graph.inputs for v in members.values):
            histogram = ranges.histogram(names)
            return _wide(max(-histogram.low, histogram.high))
        plan = ctx.facts.find(BitPlan)
        planned = [plan.activation_bits[n] for n in measured if n in plan.activation_bits] if plan else []
        bits = max(planned, default=self.activation_bits)
        if not planned and 16 in ctx.capabilities.activation_bits and self._may_widen(graph, members):
            bits = max(bits, summed_bits(graph, members) or 0)
        return ranges.choose(names, bits)

    def _may_widen(self, graph: Graph, members: GridClass) -> bool:
        if any(v in graph.inputs for v in members.values):
            return self.wide_inputs
        return self.wide_pools and is_cheap_to_widen(graph, members)

    def _weight_bits(self, graph: Graph, ctx: PassContext) -> dict[str, int]:
        """The layers whose weights do not have the default bits. Raises ConfigError for a foreign plan."""
        names = [layer.name for layer in ctx.analyses(layers, graph)]
        ends = {} if self.end_bits is None or not names else dict.fromkeys((names[0], names[-1]), self.end_bits)
        plan = ctx.facts.find(BitPlan)
        if plan is None:
            return ends
        if foreign := sorted(set(plan.weight_bits) - set(names)):
            raise ConfigError(f"quantize: the bit plan names '{foreign[0]}', which is no layer of this graph")
        if foreign_bits := sorted(set(plan.weight_bits.values()) - ctx.capabilities.weight_bits):
            raise ConfigError(f"quantize: the bit plan has {foreign_bits[0]}-bit weights, the target has not")
        return {**ends, **plan.weight_bits}


def _wide(magnitude: float) -> Quant:
    """A signed 32-bit grid whose scale is a power of two."""
    exponent = math.frexp(magnitude)[1] if magnitude > 0 else 0
    return Quant(32, True, (Dyadic.of(math.ldexp(1.0, exponent - _WIDE_STEPS)),))
