"""Batch normalizations go into the weights beside them."""

from __future__ import annotations

from typing import ClassVar, Final

import numpy as np

from qcc.errors import PassError
from qcc.ir.graph import Graph, Op, Stage, constant, op
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc_passes.canonical.affine import absorb, affine_of, fold_affine_into_producer
from qcc_passes.canonical.engine import Answer, Rule, Scope, fixpoint, on

_AFTER: Final = Rule(frozenset({"batch_norm"}), fold_affine_into_producer.apply)


@on("conv2d", "dense")
def fold_batch_norm_before(o: Op, scope: Scope) -> Answer:
    """conv(batch_norm(x)): into weights and bias, where every reader can do the same."""
    return absorb(o, scope, "batch_norm")


@on("batch_norm")
def batch_norm_to_map(o: Op, scope: Scope) -> Answer:
    """A batch normalization that folds nowhere → map with a factor and an offset per channel."""
    step = affine_of(o, scope)
    if step is None:
        raise PassError(f"{o}: its parameters must be constant, and variance + epsilon positive")
    factor = constant(scope.fresh(f"{o.result.name}.scale"), step.scale.astype(np.float32))
    offset = constant(scope.fresh(f"{o.result.name}.offset"), step.offset.astype(np.float32))
    operands = (step.x, factor.result, offset.result)
    return [factor, offset, op("map", operands, o.results, fn="add(mul(x, p0), p1)")]


class FoldBatchNorm(Pass):
    """Fold batch normalizations into the convolutions and dense layers beside them.

    Into the one before it, where nobody else reads that; else into those after it, where none of
    them pads; else it becomes a ``map``. Arithmetic is float64. Raises PassError when parameters are
    not constant or a variance is not positive.
    """

    name: ClassVar[str] = "fold-batch-norm"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        for rules in ((_AFTER,), (fold_batch_norm_before,), (batch_norm_to_map,)):
            graph = fixpoint(graph, rules, ctx.log)
        return graph
