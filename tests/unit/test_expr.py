"""Map expressions: text, evaluation, substitution, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcc.errors import ParseError
from qcc.ir.expr import FUNCTIONS, Expr, X, call, evaluate, parse, substitute, variables

LEAVES = st.one_of(
    st.just(X),
    st.sampled_from(["p0", "p1", "p12"]).map(Expr),
    st.floats(allow_nan=False).map(Expr),
)


def calls(children: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
    names = sorted(FUNCTIONS)
    return st.sampled_from(names).flatmap(
        lambda name: st.lists(children, min_size=FUNCTIONS[name][0], max_size=FUNCTIONS[name][0]).map(
            lambda args: Expr(name, tuple(args))
        )
    )


EXPRS = st.recursive(LEAVES, calls, max_leaves=12)


@settings(deadline=None, derandomize=True, max_examples=200, database=None)
@given(EXPRS)
def test_parsing_the_spelling_gives_the_expression(e: Expr) -> None:
    assert parse(str(e)) == e


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(EXPRS, EXPRS)
def test_substitution_is_composition(outer: Expr, inner: Expr) -> None:
    """outer(inner(x)) evaluates as outer at the value of inner."""
    env = {"x": np.linspace(-2, 2, 9), "p0": np.array(0.5), "p1": np.array(2.0), "p12": np.array(-1.0)}
    inside = np.broadcast_to(evaluate(inner, env), (9,))
    wanted = evaluate(outer, {**env, "x": inside})
    got = evaluate(substitute(outer, {"x": inner}), env)
    np.testing.assert_array_equal(np.broadcast_to(got, (9,)), np.broadcast_to(wanted, (9,)))
    assert variables(substitute(outer, {"x": inner})) <= variables(outer) | variables(inner)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("mul(x, sigmoid(x))", lambda x: x / (1 + math.exp(-x))),
        ("mul(mul(0.5, x), add(1.0, erf(div(x, sqrt(2.0)))))", lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2)))),
        ("softplus(x)", lambda x: math.log1p(math.exp(x))),
        ("where(less(x, 0), mul(0.1, x), x)", lambda x: x if x >= 0 else 0.1 * x),
        ("max(min(x, 1e0), -1.5e-1)", lambda x: max(min(x, 1.0), -0.15)),
        ("round(x)", round),
        ("sub(floor(x), ceil(x))", lambda x: math.floor(x) - math.ceil(x)),
        ("pow(abs(x), 3)", lambda x: abs(x) ** 3),
        ("sign(neg(x))", lambda x: math.copysign(1, -x) if x else 0.0),
    ],
)
def test_values(text: str, function: "object") -> None:
    assert callable(function)
    points = [-2.5, -1.0, -0.3, 0.0, 0.5, 1.5, 2.0]
    got = evaluate(parse(text), {"x": np.array(points)})
    np.testing.assert_allclose(got, [function(p) for p in points], rtol=1e-14, atol=1e-15)


def test_extremes_do_not_warn() -> None:
    """Sigmoid and softplus stay finite where exp would overflow; a bad argument gives NaN or infinity."""
    x = np.array([-1e4, -700.0, 700.0, 1e4])
    np.testing.assert_array_equal(evaluate(parse("sigmoid(x)"), {"x": x})[[0, 3]], [0.0, 1.0])
    np.testing.assert_array_equal(evaluate(parse("softplus(x)"), {"x": x})[[0, 3]], [0.0, 1e4])
    assert np.isinf(evaluate(parse("exp(x)"), {"x": x})[3])
    assert np.isnan(evaluate(parse("log(x)"), {"x": x})[0])
    assert np.isinf(evaluate(parse("div(1, sub(x, x))"), {"x": x})).all()


def test_evaluation_is_in_float64() -> None:
    got = evaluate(call("add", X, 1e-12), {"x": np.ones(1, np.float32)})
    assert got.dtype == np.float64
    assert got[0] != 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends early"),
        ("add(x", "'add' takes 2 argument"),
        ("add(x, x", "'add' takes 2 argument"),
        ("add(x)", "'add' takes 2 argument"),
        ("exp(x, x)", "'exp' takes 1 argument"),
        ("exp", "'exp' takes 1 argument"),
        ("add(x, )", "unknown function"),
        ("launch(x)", "unknown function 'launch'"),
        ("y", "unknown function 'y'"),
        ("x x", "unexpected 'x'"),
        ("x)", "unexpected"),
        ("x; import os", "cannot read it from column 2"),
        ("neg(" * 200 + "x" + ")" * 200, "nested too deeply"),
        ("add(" * 3000, "cannot read it from column|nested too deeply"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text)
