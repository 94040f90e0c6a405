"""Ordering channels by what they cost, and leaving no trace at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcc.errors import PassError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value, constants, producers
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.verify.interp import evaluate
from qcc_passes.calibrate import Calibrate
from qcc_passes.channel_groups import channel_groups
from qcc_passes.dyadic import Dyadic
from qcc_passes.quantize import Quantize
from qcc_passes.rearrange_channels import ChannelOrders, RearrangeChannels, RearrangeQuantizedChannels

DATA = {"x": np.random.default_rng(1).normal(size=(16, 1, 2, 2)).astype(np.float32)}
WINDOW: dict[str, Any] = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 1}
MADE = [[3.0, -3.0], [4.0, 0.0], [1.0, -2.0]]
"""Largest 3, 4, 2; norms 4.2, 4, 2.2."""
READ = [[1.0, 3.0, -2.0], [0.0, 1.0, 0.5]]
"""Largest per column 1, 3, 2."""


def network() -> Graph:
    """A chain: x → two alike channels → a, 3 channels by 1x1 → y, 2 channels → their means."""
    b = GraphBuilder("net")

    def conv(name: str, x: Value, rows: Any, **attrs: Any) -> Value:
        w = np.array(rows, np.float32).reshape(*np.shape(rows), 1, 1)
        bias = b.constant(np.arange(len(w), dtype=np.float32), f"{name}.b")
        return b.op("conv2d", [x, b.constant(w, f"{name}.w"), bias], name=name, **WINDOW, **attrs)

    x = b.input("x", (BATCH, 1, 2, 2))
    y = conv("y", conv("a", conv("s", x, [[1.0], [1.0]]), MADE, lo=0.0), READ)
    return b.graph([b.op("reduce_mean", [y], name="mean", axes=(1, 2, 3), keepdims=False)])


def context() -> PassContext:
    ctx = PassContext()
    ctx.facts.put(CalibrationData(DATA))
    return ctx


def rows_taken(graph: Graph) -> list[int]:
    """The order of a's channels, told from its bias, which counts them."""
    bias = producers(graph)["a"].operands[2].name
    return [int(b) for b in constants(graph)[bias]]


@pytest.mark.parametrize(
    ("options", "order"),
    [
        ({"by": "weights"}, [2, 0, 1]),
        ({"by": "weights", "descending": True}, [1, 0, 2]),
        ({"by": "norms"}, [2, 1, 0]),
        ({"by": "reading"}, [0, 2, 1]),
    ],
)
def test_costs_order_channels(options: dict[str, Any], order: list[int]) -> None:
    graph = network()
    after = Pipeline((make_pass("rearrange-channels", options),)).run(graph, context())
    assert rows_taken(after) == order
    assert len(after.ops) == len(graph.ops)
    wanted, got = (evaluate(g, DATA)["mean"] for g in (graph, after))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_activations_order_channels() -> None:
    graph = network()
    after = Pipeline((RearrangeChannels(by="activations", samples=16),)).run(graph, context())
    largest = np.abs(evaluate(graph, DATA, keep=["a"])["a"]).max(axis=(0, 2, 3))
    assert rows_taken(after) == np.argsort(largest).tolist()


def small(*, batch: int = BATCH) -> tuple[GraphBuilder, Value]:
    """A builder, and two channels ``a`` computed from its input ``x``, the second the larger one: ± x and ± 5 x."""
    b = GraphBuilder("net")
    w = b.constant(np.array([1.0, 5.0], np.float32).reshape(2, 1, 1, 1), "w")
    x = b.input("x", (batch, 1, 2, 2))
    return b, b.op("conv2d", [x, w, b.constant(np.arange(2, dtype=np.float32), "b")], name="a", **WINDOW)


def layer(b: GraphBuilder, name: str, x: Value, weights: Any, *rest: Value, groups: int = 1) -> Value:
    """A convolution by 1x1 with ``weights`` [O, C/groups] and zero biases."""
    w = np.array(weights, np.float32).reshape(*np.shape(weights), 1, 1)
    operands = [x, b.constant(w, "w"), b.constant(np.zeros(len(w), np.float32), "b"), *rest]
    return b.op("conv2d", operands, name=name, **{**WINDOW, "groups": groups})


def ordered(graph: Graph, **options: Any) -> Graph:
    """The graph rearranged, after a check that it computes the same."""
    after = Pipeline((make_pass("rearrange-channels", options),)).run(graph, context())
    data = {"x": DATA["x"][: abs(graph.inputs[0].type.shape[0])]}
    for name, wanted in evaluate(graph, data).items():
        np.testing.assert_allclose(evaluate(after, data)[name], wanted, rtol=1e-5, atol=1e-6)
    return after


def test_every_value_of_a_class_counts() -> None:
    b, a = small()
    graph = b.graph([layer(b, "y", b.op("clip", [a], lo=-0.01, hi=0.01), [[1.0, 2.0]])])
    assert rows_taken(ordered(graph, by="activations", descending=True)) == [1, 0]


def test_layers_count_in_relation_to_their_largest_weight() -> None:
    b, a = small()
    s = layer(b, "s", a, [[0.004, 0.0], [0.0, 0.001]], a)
    graph = b.graph([layer(b, "y", s, [[1.0, 2.0]])])
    assert rows_taken(ordered(graph)) == [0, 1], "1/5 + 1 is less than 1 + 1/4"
    b, a = small()
    s = layer(b, "s", layer(b, "t", a, [[1.0, 1.0]]), [[0.4], [0.01]], a)
    graph = b.graph([layer(b, "y", s, [[1.0, 2.0]])])
    assert rows_taken(ordered(graph)) == [1, 0], "1 + 1/40 is less than 1/5 + 1"


def test_reading_a_depthwise_convolution_counts_all_that_a_channel_makes() -> None:
    b, a = small()
    d = layer(b, "d", a, [[1.0], [5.0], [4.0], [2.0]], groups=2)
    graph = b.graph([layer(b, "y", d, [[1.0, 1.0, 1.0, 1.0]])])
    assert rows_taken(ordered(graph, by="reading")) == [1, 0]


def test_a_constant_residual_moves_along() -> None:
    b, a = small(batch=1)
    r = b.constant(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), "r")
    s = layer(b, "s", a, [[2.0, 2.0], [1.0, 1.0]], r)
    after = ordered(b.graph([layer(b, "y", s, [[1.0, 2.0]])]))
    assert constants(after)["r.ordered"].reshape(-1).tolist() == [4.0, 5.0, 6.0, 7.0, 0.0, 1.0, 2.0, 3.0]


def test_parameters_of_channels_that_come_last_move_along() -> None:
    b, a = small()
    last = b.op("transpose", [a], perm=(0, 2, 3, 1))
    m = b.op("map", [last, b.constant(np.array([3.0, 7.0], np.float32), "p")], fn="mul(x, p0)")
    w = b.constant(np.array([[1.0, 2.0]], np.float32), "v")
    graph = b.graph([b.op("dense", [m, w, b.constant(np.zeros(1, np.float32))])])
    after = ordered(graph, descending=True)
    assert constants(after)["p.ordered"].shape == (1, 1, 1, 2)
    assert constants(after)["p.ordered"].reshape(-1).tolist() == [7.0, 3.0]


def test_activations_need_data() -> None:
    with pytest.raises(PassError, match="needs calibration data"):
        RearrangeChannels(by="activations").run(network(), PassContext())


def test_without_free_classes_activations_are_not_measured() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 1, 2, 2))
    graph = b.graph([b.op("clip", [x], lo=0.0)])
    after = RearrangeChannels(by="activations").run(graph, context())
    assert after.ops == graph.ops


def test_equal_costs_keep_their_order_and_what_moved_is_reported() -> None:
    ctx = context()
    Pipeline((RearrangeChannels(),)).run(network(), ctx)
    orders = ctx.facts.get(ChannelOrders)
    assert orders.report() == {"classes": 3, "channels": 7, "moved": 5}
    assert [seats == taken for seats, taken in orders.orders] == [True, False, False]


def test_ordering_twice_changes_nothing() -> None:
    once = Pipeline((RearrangeChannels(),)).run(network(), context())
    ctx = context()
    twice = Pipeline((RearrangeChannels(),)).run(once, ctx)
    assert ctx.facts.get(ChannelOrders).moved == 0
    assert twice.ops == once.ops


@pytest.mark.parametrize("by", ["weights", "norms", "reading", "activations"])
def test_quantized_channels_move_with_their_grids_and_no_bit_changes(by: Any) -> None:
    ctx = context()
    quantized = Pipeline((Calibrate(), Quantize())).run(network(), ctx)
    after = Pipeline((RearrangeQuantizedChannels(by=by),)).run(quantized, ctx)
    assert ctx.facts.get(ChannelOrders).moved > 0
    scales = [producers(g)["a"].operands[1].type.quant for g in (quantized, after)]
    assert scales[0] is not None
    assert scales[1] is not None
    assert scales[1].scale == tuple(scales[0].scale[i] for i in rows_taken(after))
    plain, moved = (Pipeline((Dyadic(),)).run(g, PassContext()) for g in (quantized, after))
    (x,) = plain.inputs
    assert x.type.quant is not None
    codes = {"x": x.type.quant.quantize(DATA["x"])}
    np.testing.assert_array_equal(evaluate(moved, codes)["mean"], evaluate(plain, codes)["mean"])


def test_shared_constants_are_copied_once_per_order() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 2, 2, 2))
    w = b.constant(np.array([[2, 1], [1, 3]], np.float32).reshape(2, 2, 1, 1), "w")
    bias = b.constant(np.array([1.0, 2.0], np.float32), "b")
    a = b.op("conv2d", [x, w, bias], name="a", **WINDOW)
    p = b.constant(np.array([5.0, 6.0], np.float32).reshape(2, 1, 1), "p")
    c = b.op("map", [b.op("map", [a, p], name="m", fn="mul(x, p0)"), p], name="n", fn="add(x, p0)")
    graph = b.graph([b.op("conv2d", [c, w, bias], name="y", **WINDOW)])
    after = Pipeline((RearrangeChannels(descending=True),)).run(graph, context())
    assert sorted(constants(after)) == ["b", "b.ordered", "p.ordered", "w.ordered", "w.ordered_1"]
    data = {"x": np.random.default_rng(0).normal(size=(2, 2, 2, 2)).astype(np.float32)}
    np.testing.assert_allclose(evaluate(after, data)["y"], evaluate(graph, data)["y"], rtol=1e-5)


def test_classes_are_an_analysis_computed_once_per_graph() -> None:
    graph, ctx = network(), context()
    RearrangeChannels().run(graph, ctx)
    assert ctx.analyses(channel_groups, graph) is ctx.analyses(channel_groups, graph)
