"""The scalar expressions of ``map`` operations: text, tree, and numpy evaluation.

An expression says how a pointwise operation computes each element: ``mul(x, sigmoid(x))`` is SiLU.
``x`` is the mapped tensor, ``p0``, ``p1`` … are constant parameters, and the rest are functions
of ``FUNCTIONS`` and number literals. At stage INTEGER every map has become a table, so the
functions run at compile time only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ParseError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Expr:
    """A function applied to arguments, a variable (``x``, ``p0`` …), or a literal number."""

    head: str | float
    args: tuple[Expr, ...] = ()

    def __str__(self) -> str:
        if isinstance(self.head, float):
            return repr(self.head)
        return f"{self.head}({', '.join(map(str, self.args))})" if self.args else self.head


def call(head: str, *args: Expr | float) -> Expr:
    """``head(args…)``, numbers becoming literals."""
    return Expr(head, tuple(a if isinstance(a, Expr) else Expr(float(a)) for a in args))


X: Final = Expr("x")

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


FUNCTIONS: Final[Mapping[str, tuple[int, Callable[..., Any]]]] = {
    # name: (arity, numpy definition in float64)
    "add": (2, np.add),
    "sub": (2, np.subtract),
    "mul": (2, np.multiply),
    "div": (2, np.divide),
    "pow": (2, np.power),
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "less": (2, lambda a, b: (a < b).astype(np.float64)),
    "where": (3, lambda c, a, b: np.where(c != 0, a, b)),
    "neg": (1, np.negative),
    "abs": (1, np.abs),
    "sign": (1, np.sign),
    "floor": (1, np.floor),
    "ceil": (1, np.ceil),
    "round": (1, np.rint),
    "sqrt": (1, np.sqrt),
    "exp": (1, np.exp),
    "log": (1, np.log),
    "sin": (1, np.sin),
    "cos": (1, np.cos),
    "tan": (1, np.tan),
    "asin": (1, np.arcsin),
    "acos": (1, np.arccos),
    "atan": (1, np.arctan),
    "sinh": (1, np.sinh),
    "cosh": (1, np.cosh),
    "asinh": (1, np.arcsinh),
    "acosh": (1, np.arccosh),
    "atanh": (1, np.arctanh),
    "tanh": (1, np.tanh),
    "erf": (1, _erf),
    "sigmoid": (1, _sigmoid),
    "softplus": (1, lambda x: np.logaddexp(0.0, x)),
}


def substitute(expr: Expr, bindings: Mapping[str, Expr]) -> Expr:
    """``expr`` with its variables replaced: how two maps become one."""
    if not expr.args:
        return bindings.get(expr.head, expr) if isinstance(expr.head, str) else expr
    return Expr(expr.head, tuple(substitute(a, bindings) for a in expr.args))


def evaluate(expr: Expr, env: Mapping[str, NDArray[Any]]) -> Array:
    """The value of ``expr`` in float64; ``env`` gives the variables, which broadcast."""
    if isinstance(expr.head, float):
        return np.array(expr.head)
    if expr.args:
        _, function = FUNCTIONS[expr.head]
        with np.errstate(all="ignore"):
            result: Array = function(*(evaluate(a, env) for a in expr.args))
        return result
    return np.asarray(env[expr.head], np.float64)


def variables(expr: Expr) -> frozenset[str]:
    if not expr.args:
        return frozenset({expr.head}) if isinstance(expr.head, str) else frozenset()
    return frozenset().union(*(variables(a) for a in expr.args))


_TOKEN = re.compile(r"\s*([A-Za-z_]\w*|-?(?:inf|nan|\d+\.?\d*(?:[eE][-+]?\d+)?)|[(),])")
_VARIABLE = re.compile(r"x|p\d+")
_MAX_TOKENS = 4096


def parse(text: str) -> Expr:
    """The expression that ``text`` spells; ``parse(str(e)) == e``. Raises ParseError."""
    tokens: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None or len(tokens) >= _MAX_TOKENS:
            raise ParseError(f"map expression {text[:80]!r}: cannot read it from column {position + 1}")
        tokens.append(match[1])
        position = match.end()
    expr, rest = _parse(tokens, text, 0)
    if rest != len(tokens):
        raise ParseError(f"map expression {text[:80]!r}: unexpected '{tokens[rest]}'")
    return expr


def _parse(tokens: list[str], text: str, at: int, depth: int = 0) -> tuple[Expr, int]:
    if at >= len(tokens) or depth > 100:
        raise ParseError(f"map expression {text[:80]!r} ends early or is nested too deeply")
    head = tokens[at]
    at += 1
    if head[0].isdigit() or head[0] == "-" or head in ("inf", "nan"):
        return Expr(float(head)), at
    if _VARIABLE.fullmatch(head):
        return Expr(head), at
    if head not in FUNCTIONS:
        raise ParseError(f"map expression {text[:80]!r}: unknown function '{head}'")
    arity, _ = FUNCTIONS[head]
    args: list[Expr] = []
    for index in range(arity):
        if at >= len(tokens) or tokens[at] != ("," if index else "("):
            raise ParseError(f"map expression {text[:80]!r}: '{head}' takes {arity} argument(s)")
        arg, at = _parse(tokens, text, at + 1, depth + 1)
        args.append(arg)
    if at >= len(tokens) or tokens[at] != ")":
        raise ParseError(f"map expression {text[:80]!r}: '{head}' takes {arity} argument(s)")
    return Expr(head, tuple(args)), at + 1
