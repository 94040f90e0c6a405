"""Operations that compute what is known already: at compile time, or a few lines above."""

from __future__ import annotations

import logging
import math
from typing import Final

from qcc.ir.graph import Graph, Op, Stage, Value, constant
from qcc.ir.opset import OPSET
from qcc.verify.interp import evaluate_op
from qcc_passes.canonical.engine import Answer, Rule, Scope, on, sweep

Key = tuple[object, ...]

FOLDABLE: Final = tuple(k for k, spec in OPSET.items() if Stage.FLOAT in spec.stages and k != "constant")


def constant_folding(limit: int) -> Rule:
    """The rule that evaluates operations on constants whose result has at most ``limit`` elements."""

    @on(*FOLDABLE)
    def fold_constants(o: Op, scope: Scope) -> Answer:
        arrays = [scope.constant(v) for v in o.operands]
        known = [a for a in arrays if a is not None]
        if len(known) != len(arrays):
            return None
        if math.prod(o.result.type.shape) > limit:
            return scope.keep(o, f"its {math.prod(o.result.type.shape)} elements exceed the limit of {limit}")
        array = evaluate_op(o, known).astype(o.result.type.numpy)
        return [constant(o.result.name, array.reshape(o.result.type.shape))]

    return fold_constants


def merge_equal(graph: Graph, log: logging.Logger) -> tuple[Graph, int]:
    """``graph`` with operations of equal kind, operands and attributes computed once."""
    canonical: dict[Key, Value] = {}
    same: dict[str, str] = {}

    def merge(o: Op, scope: Scope) -> Value | None:
        key = (o.kind, tuple(same.get(v.name, v.name) for v in o.operands), o.result.type, tuple(o.attrs.items()))
        first = canonical.setdefault(key, o.result)
        if first is o.result or (scope.is_output(o.result) and (scope.is_output(first) or scope.is_input(first))):
            return None
        same[o.result.name] = first.name
        return first

    return sweep(graph, [Rule(frozenset({o.kind for o in graph.ops}), merge)], log)
