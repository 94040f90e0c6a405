"""ONNX nodes of ``map`` expressions, in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from qcc.frontend.export_builder import Builder
from qcc.ir.expr import Expr, parse, variables
from qcc.ir.graph import Op

_NODES: Final[Mapping[str, str]] = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "pow": "Pow",
    "min": "Min",
    "max": "Max",
    "neg": "Neg",
    "abs": "Abs",
    "sign": "Sign",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "sin": "Sin",
    "cos": "Cos",
    "tan": "Tan",
    "asin": "Asin",
    "acos": "Acos",
    "atan": "Atan",
    "sinh": "Sinh",
    "cosh": "Cosh",
    "asinh": "Asinh",
    "acosh": "Acosh",
    "atanh": "Atanh",
    "tanh": "Tanh",
    "erf": "Erf",
    "sigmoid": "Sigmoid",
    "softplus": "Softplus",
}
"""Functions that are one ONNX node; ``less`` and ``where`` go through booleans."""


def map_nodes(b: Builder, o: Op, xs: Sequence[str]) -> str:
    """The nodes of a ``map``; a repeated subexpression is computed once."""
    expr = parse(o.str_attr("fn"))
    env = {Expr("x"): xs[0]} | {Expr(f"p{i}"): p for i, p in enumerate(xs[1:])}
    result = _emit(b, o.result.name, expr, env)
    if "x" in variables(expr):
        return result
    shape = b.node("Shape", [xs[0]], f"{o.result.name}/shape")
    return b.node("Expand", [result, shape], o.result.name)


def _emit(b: Builder, stem: str, expr: Expr, env: dict[Expr, str]) -> str:
    if expr not in env:
        if isinstance(expr.head, float):
            env[expr] = b.scalar(expr.head, np.float32, "literal")
        else:
            args = [_emit(b, stem, a, env) for a in expr.args]
            env[expr] = _call(b, f"{stem}/{expr.head}", expr.head, args)
    return env[expr]


def _call(b: Builder, stem: str, head: str, args: Sequence[str]) -> str:
    if head == "less":
        return b.cast(b.node("Less", args, f"{stem}/bool"), np.float32, stem)
    if head == "where":
        return b.node("Where", [b.cast(args[0], np.bool_, f"{stem}/bool"), *args[1:]], stem)
    return b.node(_NODES[head], args, stem)
