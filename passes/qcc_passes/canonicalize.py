"""Bring a float graph to the one form that the quantizer handles."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field

from qcc.errors import PassError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc_passes.canonical import affine, clamps, lowering, movement, padding, pointwise, sinking
from qcc_passes.canonical.engine import Rule, fixpoint
from qcc_passes.canonical.sharing import constant_folding, merge_equal

STRUCTURE: Final[tuple[Rule, ...]] = (
    *movement.RULES,
    *sinking.RULES,
    *lowering.RULES,
    *affine.RULES,
    pointwise.map_to_clip,
    *padding.RULES,
    *clamps.RULES,
)
"""Everything but the fusion of pointwise chains, which must only see what these leave over: a clamp
or a factor that a convolution can take in would otherwise end up in a table."""

_ROUNDS: Final = 20


class Canonicalize(Pass):
    """Fold, fuse and reorder float operations into the form that the quantizer handles.

    The function is preserved (up to float rounding), input and output names too. Of conv2d, dense,
    matmul, add, sub, mul, clip, map, pools, reductions, resize_linear, softmax, argmax and data
    movement nothing else is left, unless two variables are divided or a weight is no constant.
    ``fold_limit`` bounds the elements of a constant computed at compile time. Raises PassError when
    rewriting does not settle.
    """

    name: ClassVar[str] = "canonicalize"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT

    fold_limit: int = Field(default=1 << 24, ge=0)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        structure = (constant_folding(self.fold_limit), *STRUCTURE)
        for _ in range(_ROUNDS):
            before = graph
            graph = fixpoint(graph, structure, ctx.log)
            graph, merged = merge_equal(graph, ctx.log)
            fused = fixpoint(graph, pointwise.RULES, ctx.log)
            if not merged and fused.ops == before.ops:
                return fused
            graph = fused
        raise PassError(f"'{graph.name}' still changes after {_ROUNDS} rounds of canonicalization")
