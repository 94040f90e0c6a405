"""Integer-only rewriting: from QUANTIZED to INTEGER."""

from __future__ import annotations

from typing import ClassVar

from qcc.errors import PassError
from qcc.ir.bounds import certificates
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc_passes import dyadic_linear, dyadic_other
from qcc_passes.dyadic_lowering import Lowering

RULES = {**dyadic_linear.RULES, **dyadic_other.RULES}


class Dyadic(Pass):
    """Rewrite everything into integers: each operation ends in one exact (acc * m + c) >> shift.

    Every multiplier and constant comes from the exact scales by rational arithmetic. Divisors of
    averages, biases, zero points and the rounding half are folded into ``m`` and ``c``; pointwise
    functions become tables. Every accumulator is proved to fit, or the pass refuses the graph.
    """

    name: ClassVar[str] = "dyadic"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.INTEGER

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The INTEGER graph. Raises PassError naming an operation that cannot be rewritten, VerifyError on overflow."""
        low = Lowering(graph)
        for o in graph.ops:
            if o.kind == "constant":
                continue
            if o.kind not in RULES:
                raise PassError(f"{o}: '{o.kind}' has no integer form")
            RULES[o.kind](low, o)
        lowered = low.graph()
        limit = ctx.capabilities.accumulator_bits
        for certificate in ctx.analyses(certificates, lowered).values():
            if certificate.accumulator.bits > limit:
                raise PassError(f"{certificate}: the target's accumulators have {limit} bits; narrow the weights")
        return lowered
