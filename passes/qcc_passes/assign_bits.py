"""Bits by hand, or as a search found them."""

from typing import ClassVar

from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc_passes.facts import BitPlan
from qcc_passes.layers import layers


class AssignBits(Pass):
    """Give layers' weights, and activations, the bits that are listed; all others keep the defaults of quantize."""

    name: ClassVar[str] = "assign-bits"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[tuple[type, ...]] = (BitPlan,)

    weight_bits: dict[str, int] = Field(default_factory=dict, description="bits by layer: the name of its result")
    activation_bits: dict[str, int] = Field(default_factory=dict, description="bits by activation")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph as it is; the plan is put into ``ctx``. Raises ConfigError for what is not there."""
        names = [layer.name for layer in ctx.analyses(layers, graph)]
        values = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops if o.kind != "constant"}
        for what, plan, known, able in (
            ("layer", self.weight_bits, set(names), ctx.capabilities.weight_bits),
            ("activation", self.activation_bits, values, ctx.capabilities.activation_bits),
        ):
            for name, bits in plan.items():
                if name not in known:
                    listed = f"; layers: {', '.join(names)}" if what == "layer" else ""
                    raise ConfigError(f"assign-bits: the graph has no {what} '{name}'{listed}")
                if bits not in able:
                    have = ", ".join(map(str, sorted(able)))
                    raise ConfigError(f"assign-bits: {bits} bits for '{name}', but the target has {have}")
        ctx.facts.put(BitPlan(self.weight_bits, self.activation_bits))
        return graph
