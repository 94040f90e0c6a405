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
        window: dict[str, Any] = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 1}
        return b.op("conv2d", [x, b.constant(w, f"{name}.w"), bias], name=name, **window, **attrs)

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
    window: dict[str, Any] = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": 1}
    a = b.op("conv2d", [x, w, bias], name="a", **window)
    p = b.constant(np.array([5.0, 6.0], np.float32).reshape(2, 1, 1), "p")
    c = b.op("map", [b.op("map", [a, p], name="m", fn="mul(x, p0)"), p], name="n", fn="add(x, p0)")
    graph = b.graph([b.op("conv2d", [c, w, bias], name="y", **window)])
    after = Pipeline((RearrangeChannels(descending=True),)).run(graph, context())
    assert sorted(constants(after)) == ["b", "b.ordered", "p.ordered", "w.ordered", "w.ordered_1"]
    data = {"x": np.random.default_rng(0).normal(size=(2, 2, 2, 2)).astype(np.float32)}
    np.testing.assert_allclose(evaluate(after, data)["y"], evaluate(graph, data)["y"], rtol=1e-5)


def test_classes_are_an_analysis_computed_once_per_graph() -> None:
    graph, ctx = network(), context()
    RearrangeChannels().run(graph, ctx)
    assert ctx.analyses(channel_groups, graph) is ctx.analyses(channel_groups, graph)
