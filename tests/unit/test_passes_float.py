"""Canonicalization and batch-norm folding: what golden files cannot show."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.errors import PassError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op, Value, op
from qcc.ir.text import parse
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.interp import evaluate
from qcc_passes.canonical.engine import Answer, Scope, fixpoint, on
from qcc_passes.canonicalize import Canonicalize
from qcc_passes.fold_batch_norm import FoldBatchNorm

WINDOW: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1)}
GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("*.qir"))
FLOAT_GOLDEN = [p for p in GOLDEN if p.stem.startswith(("canonicalize", "fold_batch_norm"))]


def _canonical(graph: Graph, **options: Any) -> Graph:
    return Pipeline((FoldBatchNorm(), Canonicalize(**options))).run(graph, PassContext())


def _check_same(graph: Graph, after: Graph) -> None:
    rng = np.random.default_rng(1)
    feeds = {v.name: rng.normal(size=(3, *v.type.shape[1:])).astype(np.float32) for v in graph.inputs}
    wanted, got = evaluate(graph, feeds), evaluate(after, feeds)
    for name, reals in wanted.items():
        np.testing.assert_allclose(got[name], reals, rtol=0, atol=1e-5 * np.abs(reals).max())


def _kinds(graph: Graph) -> list[str]:
    return [o.kind for o in graph.ops if o.kind != "constant"]


@pytest.mark.parametrize("path", FLOAT_GOLDEN, ids=lambda p: p.stem)
def test_golden_graphs_keep_their_function(path: Path) -> None:
    graph = parse(path.read_text().partition("# gives\n")[0])
    _check_same(graph, _canonical(graph))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 2, 1), (3, 4, 5, 2)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
def test_transposed_convolutions(groups: int, pads: tuple[int, ...], dilations: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 4, 5, 5))
    w = b.constant(rng.normal(size=(4, 3, 3, 2)).astype(np.float32), "w")
    bias = b.constant(rng.normal(size=3 * groups).astype(np.float32), "b")
    attrs: dict[str, Any] = {
        "strides": (3, 2),
        "dilations": dilations,
        "groups": groups,
        "pads": pads,
        "output_padding": (2, 1),
    }
    graph = b.graph([b.op("conv_transpose2d", [x, w, bias], **attrs)])
    after = _canonical(graph)
    assert "conv_transpose2d" not in _kinds(after)
    _check_same(graph, after)


def _conv(b: GraphBuilder, x: Value) -> Value:
    w = b.constant(np.ones((2, x.type.shape[1], 1, 1), np.float32), "w")
    return b.op("conv2d", [x, w, b.constant(np.zeros(2, np.float32), "b")], groups=1, pads=(0,) * 4, **WINDOW)


def test_rules_say_why_they_do_not_match(caplog: pytest.LogCaptureFixture) -> None:
    b = GraphBuilder("net")
    c = _conv(b, b.input("x", (BATCH, 2, 3, 3)))
    graph = b.graph([b.op("clip", [c], lo=0.0), b.op("softmax", [c], axis=1)])
    with caplog.at_level(logging.DEBUG, "qcc"):
        _canonical(graph)
    assert "clip %clip kept: %conv2d has other users" in caplog.text


def test_rewrites_are_logged_by_rule(caplog: pytest.LogCaptureFixture) -> None:
    b = GraphBuilder("net")
    graph = b.graph([b.op("clip", [_conv(b, b.input("x", (BATCH, 2, 3, 3)))], lo=0.0)])
    with caplog.at_level(logging.DEBUG, "qcc"):
        _canonical(graph)
    assert "clip %clip rewritten: fuse-clip" in caplog.text


def _normalized(variance: float) -> Graph:
    b = GraphBuilder("net")
    one = b.constant(np.ones(2, np.float32), "one")
    var = b.constant(np.array([1.0, variance], np.float32), "var")
    return b.graph([b.op("batch_norm", [b.input("x", (BATCH, 2)), one, one, one, var], epsilon=1e-3, name="n")])


def test_batch_norm_of_the_input_becomes_a_map() -> None:
    graph = _normalized(2.0)
    after = _canonical(graph)
    assert _kinds(after) == ["map"]
    _check_same(graph, after)


@pytest.mark.parametrize("variance", [-1.0, -1e-3, float("nan")])
def test_batch_norm_without_a_variance(variance: float) -> None:
    with pytest.raises(PassError, match="batch_norm %n: its parameters must be constant, and variance"):
        _canonical(_normalized(variance))


def test_batch_norm_with_variable_parameters() -> None:
    b = GraphBuilder("net")
    x, scale = b.input("x", (1, 2)), b.input("scale", (2,))
    one = b.constant(np.ones(2, np.float32), "one")
    with pytest.raises(PassError, match="must be constant"):
        _canonical(b.graph([b.op("batch_norm", [x, scale, one, one, one], epsilon=0.0)]))


def test_constants_beyond_the_limit_are_left() -> None:
    b = GraphBuilder("net")
    big = b.op("pad", [b.constant(np.ones((1, 4), np.float32))], pads=(0, 0, 0, 96), values=(0.0,))
    graph = b.graph([b.op("add", [b.input("x", (BATCH, 100)), big])])
    assert "pad" not in _kinds(_canonical(graph))
    assert "pad" in _kinds(_canonical(graph, fold_limit=99))


def test_graphs_that_are_constant_as_a_whole() -> None:
    b = GraphBuilder("net")
    b.input("x", (BATCH, 1))
    graph = b.graph([b.op("map", [b.constant(np.array([0.0, 1.0], np.float32))], fn="exp(x)")])
    after = _canonical(graph)
    assert _kinds(after) == []
    np.testing.assert_allclose(after.ops[0].array, np.exp([0, 1]), rtol=1e-6)


def test_outputs_that_are_inputs_or_each_other_keep_their_names() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 3))
    y = b.op("map", [x], fn="tanh(x)")
    outs = [
        b.op("reshape", [v], shape=(BATCH, 3), name=n) for n, v in (("a", x), ("b", x), ("c", y), ("d", y), ("e", y))
    ]
    graph = b.graph(outs)
    after = _canonical(graph)
    assert [v.name for v in after.outputs] == ["a", "b", "c", "d", "e"]
    assert _kinds(after).count("map") == 1
    _check_same(graph, after)


def test_expressions_stay_readable() -> None:
    """Squares of squares double in size; fusion stops before an expression grows past its bound."""
    b = GraphBuilder("net")
    y = b.input("x", (BATCH, 3))
    for _ in range(9):
        y = b.op("map", [b.op("mul", [y, y])], fn="tanh(x)")
    for _ in range(70):
        y = b.op("map", [y], fn="sin(x)")
    graph = b.graph([y])
    after = _canonical(graph)
    assert 1 < len(_kinds(after)) < 30
    assert max(len(o.str_attr("fn")) for o in after.ops) < 5000
    _check_same(graph, after)


def test_a_clamp_prefers_its_convolution_to_a_table() -> None:
    b = GraphBuilder("net")
    r = b.op("clip", [_conv(b, b.input("x", (BATCH, 2, 3, 3)))], lo=0.0)
    after = _canonical(b.graph([b.op("map", [r], fn="exp(x)")]))
    assert [(o.kind, dict(o.attrs).get("lo")) for o in after.ops if o.kind != "constant"] == [
        ("conv2d", 0.0),
        ("map", None),
    ]


def test_rules_that_undo_each_other_are_found() -> None:
    @on("add")
    def to_sub(o: Op, scope: Scope) -> Answer:
        return [op("sub", o.operands, o.results)]

    @on("sub")
    def to_add(o: Op, scope: Scope) -> Answer:
        return [op("add", o.operands, o.results)]

    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 3))
    with pytest.raises(PassError, match="two of them undo each other"):
        fixpoint(b.graph([b.op("add", [x, x])]), [to_sub, to_add], logging.getLogger("qcc"))


def test_infinite_scales_are_not_folded() -> None:
    b = GraphBuilder("net")
    zero = b.constant(np.array([0.0, 1.0], np.float32), "zero")
    after = _canonical(b.graph([b.op("div", [b.input("x", (BATCH, 2)), zero])]))
    assert _kinds(after) == ["map"]
    feeds = {"x": np.array([[1.0, 3.0]], np.float32)}
    np.testing.assert_array_equal(next(iter(evaluate(after, feeds).values())), [[np.inf, 3.0]])


@pytest.mark.parametrize(
    ("kind", "attrs"),
    [
        ("softmax", {"axis": 3}),
        ("argmax", {"axis": 3, "keepdims": False}),
        ("argmax", {"axis": 1, "keepdims": True}),
        ("reduce_max", {"axes": (1, 3), "keepdims": False}),
        ("gather", {"axis": 2, "indices": (1, 1, 0)}),
        ("pad", {"pads": (0, 1, 0, 0, 0, 0, 2, 0), "values": (0.5,)}),
        ("pad", {"pads": (0, 0, 0, 1, 0, 0, 0, 0), "values": (1.0, 2.0, 3.0)}),
    ],
)
def test_operations_along_axes_follow_a_transpose(kind: str, attrs: dict[str, Any]) -> None:
    b = GraphBuilder("net")
    turned = b.op("transpose", [_conv(b, b.input("x", (BATCH, 2, 3, 4)))], perm=(0, 2, 3, 1))
    graph = b.graph([b.op(kind, [turned], **attrs)])
    after = _canonical(graph)
    # Values per channel are those of axis 1: such a pad cannot leave its layout.
    assert (_kinds(after).index(kind) == 1) == (attrs.get("values") != (1.0, 2.0, 3.0))
    _check_same(graph, after)
