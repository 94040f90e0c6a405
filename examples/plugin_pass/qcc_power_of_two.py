"""A qcc pass in one module: weight scales become powers of two."""

from dataclasses import replace
from typing import ClassVar, Literal

from qcc.ir.graph import Graph, Op, Stage, rewrite
from qcc.ir.types import Dyadic, Quant
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext


class PowerOfTwoScales(Pass):
    """Make every weight scale a power of two, for hardware that can shift but not multiply.

    ``toward`` says which power: ``above`` never clips a weight but loses up to one bit of
    resolution, ``nearest`` (in the logarithm) keeps resolution and may clip the largest weights.
    """

    name: ClassVar[str] = "power-of-two-scales"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED

    toward: Literal["above", "nearest"] = "above"

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with the grids of its per-channel constants changed; their values stay as they are."""

        def rule(o: Op) -> list[Op] | None:
            quant = o.result.type.quant
            if o.kind != "constant" or quant is None or quant.axis is None:
                return None
            return [replace(o, results=(o.result.typed(quant=self._rounded(quant)),))]

        return rewrite(graph, rule)

    def _rounded(self, quant: Quant) -> Quant:
        return replace(quant, scale=tuple(self._power(scale) for scale in quant.scale))

    def _power(self, scale: Dyadic) -> Dyadic:
        """The power of two that stands in for ``scale``; a power of two stands for itself."""
        below = scale.mult.bit_length() - 1 - scale.shift  # 2**below <= scale < 2**(below + 1)
        lower = Dyadic.of(2.0**below)
        if lower.fraction == scale.fraction:
            return lower
        # Nearest in the logarithm: the two powers part at 2**(below + 1/2), so compare squares exactly.
        stays = self.toward == "nearest" and scale.fraction**2 < 2 * lower.fraction**2
        return lower if stays else Dyadic.of(2.0 ** (below + 1))
