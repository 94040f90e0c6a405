"""Pointwise chains of one variable become a single ``map``, or a ``clip`` where that is all they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qcc.ir.expr import Expr, call, evaluate, substitute
from qcc.ir.expr import parse as parse_expr
from qcc.ir.graph import Op, Value, op
from qcc_passes.canonical.clamps import bounds, clamp_attrs
from qcc_passes.canonical.engine import Answer, Rule, Scope, on

POINTWISE: Final = ("clip", "map", "add", "sub", "mul", "div")
_MAX_NODES: Final = 400
_MAX_DEPTH: Final = 60


@dataclass(frozen=True, slots=True)
class Chain:
    """An expression over value names, the variables among them, and its per-channel constants."""

    expr: Expr
    variables: dict[str, Value]
    params: dict[str, Value]

    @property
    def fits(self) -> bool:
        nodes, depth = _measure(self.expr)
        return nodes <= _MAX_NODES and depth <= _MAX_DEPTH


def _measure(e: Expr) -> tuple[int, int]:
    sizes = [_measure(a) for a in e.args]
    return 1 + sum(n for n, _ in sizes), 1 + max((d for _, d in sizes), default=0)


def chain_of(o: Op, scope: Scope) -> Chain | None:
    """What ``o`` computes per element; None where it broadcasts a variable, or a constant not per channel."""
    if o.kind not in POINTWISE or o.result.type.dtype != "f32":
        return None
    variables: dict[str, Value] = {}
    params: dict[str, Value] = {}
    leaves: list[Expr] = []
    for v in o.operands:
        value = scope.constant(v)
        if value is None:
            if v.type.shape != o.result.type.shape:
                return None
            variables[v.name] = v
            leaves.append(Expr(v.name))
        elif value.size == 1:
            leaves.append(Expr(float(value.reshape(()))))
        elif _is_per_channel(v.type.shape, o.result.type.rank):
            params[v.name] = v
            leaves.append(Expr(v.name))
        else:
            return None
    return Chain(simplified(_expression(o, leaves)), variables, params)


def _is_per_channel(shape: tuple[int, ...], rank: int) -> bool:
    full = (1,) * (rank - len(shape)) + shape
    return len(full) == rank and all(d == 1 for a, d in enumerate(full) if a != 1)


def _expression(o: Op, leaves: Sequence[Expr]) -> Expr:
    if o.kind == "map":
        names = ["x", *(f"p{i}" for i in range(len(leaves) - 1))]
        return substitute(parse_expr(o.str_attr("fn")), dict(zip(names, leaves, strict=True)))
    expr = leaves[0] if o.kind == "clip" else call(o.kind, *leaves)
    lo, hi = bounds(o)
    if lo > -math.inf:
        expr = call("max", expr, lo)
    return call("min", expr, hi) if hi < math.inf else expr


def simplified(e: Expr) -> Expr:
    """``e`` with calls on literals computed and neutral elements dropped."""
    if not e.args:
        return e
    args = tuple(simplified(a) for a in e.args)
    literals = [a.head for a in args if isinstance(a.head, float)]
    if len(literals) == len(args):
        value = float(evaluate(Expr(e.head, args), {}))
        return Expr(value) if math.isfinite(value) else Expr(e.head, args)
    neutral = {"add": 0.0, "sub": 0.0, "mul": 1.0, "div": 1.0}.get(str(e.head))
    if neutral is not None and args[1].head == neutral:
        return args[0]
    if e.head in ("add", "mul") and args[0].head == neutral:
        return args[1]
    return Expr(e.head, args)


def _inline(chain: Chain, name: str, inner: Chain) -> Chain:
    variables = {k: v for k, v in chain.variables.items() if k != name} | inner.variables
    expr = simplified(substitute(chain.expr, {name: inner.expr}))
    return Chain(expr, variables, {**chain.params, **inner.params})


def _longest(o: Op, start: Chain, scope: Scope) -> Chain:
    """``start`` with producers inlined as far as one variable remains in the end.

    Along a path of one variable only producers without other users are inlined, so that nothing is
    computed twice; where two paths branch, whatever makes them meet again is.
    """
    best = chain = start
    for _ in range(_MAX_NODES):
        single = len(chain.variables) == 1
        last = max(chain.variables.values(), key=lambda v: scope.place(v))
        made = scope.sole_producer(last, *POINTWISE) if single else scope.producer(last, *POINTWISE)
        inner = None if made is None else chain_of(made, scope)
        if inner is None or not inner.variables:
            break
        chain = _inline(chain, last.name, inner)
        if not chain.fits:
            scope.keep(o, f"with {made} its expression would grow beyond {_MAX_NODES} terms")
            break
        if len(chain.variables) == 1:
            best = chain
    return best


@on(*POINTWISE)
def fuse_pointwise(o: Op, scope: Scope) -> Answer:
    """Whatever ``o`` and the pointwise operations before it compute of one variable, in one operation."""
    start = chain_of(o, scope)
    if start is None or not start.variables:
        return None
    chain = _longest(o, start, scope)
    if len(chain.variables) != 1:
        return scope.keep(o, f"it combines {', '.join('%' + n for n in chain.variables)}")
    ((name, x),) = chain.variables.items()
    made = _as_clip(chain.expr, x, o) or _as_map(chain, name, x, o)
    same = made.kind == o.kind and made.attrs == o.attrs and made.operands == o.operands
    return None if same else [made]


def _as_map(chain: Chain, name: str, x: Value, o: Op) -> Op:
    used = [p for p in chain.params if _mentions(chain.expr, p)]
    names = {name: Expr("x")} | {p: Expr(f"p{i}") for i, p in enumerate(used)}
    fn = str(substitute(chain.expr, names))
    return op("map", (x, *(chain.params[p] for p in used)), o.results, fn=fn)


def _mentions(e: Expr, name: str) -> bool:
    return e.head == name if not e.args else any(_mentions(a, name) for a in e.args)


def _as_clip(e: Expr, x: Value, o: Op) -> Op | None:
    """The clip that ``e`` spells as nested min and max of ``x`` with literals; None if it is no clip."""
    lo, hi = -math.inf, math.inf
    steps: list[tuple[str, float]] = []
    while e.head in ("min", "max") and e.args:
        literal = next((a for a in e.args if isinstance(a.head, float)), None)
        if literal is None or not isinstance(literal.head, float) or math.isnan(literal.head):
            return None
        steps.append((str(e.head), literal.head))
        e = next(a for a in e.args if a is not literal)
    if e.args or e.head != x.name or not steps:
        return None
    for kind, bound in reversed(steps):
        limit = min if kind == "min" else max
        lo, hi = (limit(lo, bound), limit(hi, bound))
    return op("clip", (x,), o.results, **clamp_attrs(lo, hi))


@on("map")
def map_to_clip(o: Op, scope: Scope) -> Answer:
    """A map that only takes minima and maxima with literals is a clip, which may fuse further."""
    chain = chain_of(o, scope)
    if chain is None or len(chain.variables) != 1:
        return None
    return None if (made := _as_clip(chain.expr, o.operands[0], o)) is None else [made]


RULES: Final[tuple[Rule, ...]] = (fuse_pointwise,)
