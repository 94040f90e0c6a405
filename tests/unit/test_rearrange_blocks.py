"""Input channels in the order that lets blocks of weights share exponents well, and what the exponents cost."""

from typing import Any

import numpy as np
import pytest
from grouped_network import context, network
from numpy.typing import NDArray

from qcc.artifact.sizes import layer_sizes
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.layout import Widths
from qcc.ir.packing import packed_size
from qcc.ir.types import BATCH
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.interp import evaluate
from qcc_passes.acceptance import Court
from qcc_passes.calibrate import Calibrate
from qcc_passes.costs import CostModel
from qcc_passes.dyadic import Dyadic
from qcc_passes.facts import BitPlan, WeightBlocks
from qcc_passes.layers import layers
from qcc_passes.pipelines import default
from qcc_passes.precision_groups import PrecisionGroupsFound
from qcc_passes.quantize import Quantize
from qcc_passes.rearrange_blocks import RearrangeBlocks
from qcc_passes.rearrange_channels import ChannelOrders, RearrangeChannels
from qcc_passes.round_weights import RoundWeights
from qcc_passes.scoring import compiled_by

Array = NDArray[Any]


def chain(sizes: Array) -> Graph:
    """A convolution, and one that reads its 16 channels with weights of ``sizes`` [rows, 16]."""
    b, rng = GraphBuilder("chain"), np.random.default_rng(1)
    window: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0), "groups": 1}
    y = b.input("x", (BATCH, 12, 5, 5))
    for sizes_ in (np.ones((16, 12)), sizes):
        w = (rng.uniform(0.7, 1, sizes_.shape) * sizes_ * rng.choice([-1, 1], sizes_.shape))[..., None, None]
        zeros = np.zeros(len(w), np.float32)
        y = b.op("conv2d", [y, b.constant(w.astype(np.float32), "w"), b.constant(zeros, "b")], **window)
    return b.graph([y])


def squared_error(graph: Graph) -> float:
    """Of the output when the weights of the last layer have 4 bits, in blocks, rounded to nearest."""
    x = {"x": np.random.default_rng(7).normal(size=(64, 12, 5, 5)).astype(np.float32)}
    (name,) = (v.name for v in graph.outputs)
    ctx = context()
    ctx.facts.put(BitPlan({name: 4}, {}))
    quantized = Pipeline((Calibrate(), Quantize(weight_block=8))).run(graph, ctx)
    return float(np.square(evaluate(quantized, x)[name] - evaluate(graph, x)[name]).sum())


def test_channels_move_where_blocks_gain() -> None:
    graph = chain(np.tile([1.6, 6.0], (96, 8)))
    ctx = context()
    ctx.facts.put(BitPlan({graph.outputs[0].name: 4}, {}))
    moved = Pipeline((Calibrate(), RearrangeBlocks(block=8))).run(graph, ctx)
    assert ctx.facts.get(ChannelOrders).moved > 0
    assert squared_error(moved) < 0.8 * squared_error(graph)


def test_channels_stay_where_the_order_would_cost() -> None:
    """Each half of the channels is large for one half of the rows, so that sorting by the largest weight mixes them."""
    graph = chain(np.kron([[1.0, 6.0], [6.0, 1.0]], np.ones((3, 8))))
    assert squared_error(Pipeline((RearrangeChannels(by="reading"),)).run(graph, context())) > squared_error(graph)
    ctx = context()
    ctx.facts.put(BitPlan({graph.outputs[0].name: 4}, {}))
    stayed = Pipeline((Calibrate(), RearrangeBlocks(block=8))).run(graph, ctx)
    assert ctx.facts.get(ChannelOrders).moved == 0
    assert squared_error(stayed) == squared_error(graph)


@pytest.mark.parametrize(("seed", "pays"), [(10, True), (7, False)])
def test_channels_stay_where_the_compiled_network_would_lose(seed: int, pays: bool) -> None:
    graph, ctx = network(seed), context(seed)
    calibrated = Pipeline((Calibrate(),)).run(graph, ctx)
    court = Court.of(calibrated, ctx, compiled_by() | {"quantize": {"weight_bits": 4, "weight_block": 8}}, 0.4)
    ordered = RearrangeBlocks(block=8).run(calibrated, ctx)
    before, after = (court.score(g, BitPlan({}, {})) for g in (calibrated, ordered))
    assert (ctx.facts.get(ChannelOrders).moved > 0) == pays
    assert (after.soft < before.soft) == pays
    assert after.soft <= before.soft
    assert after.kl <= before.kl


@pytest.mark.parametrize("rearrange", [False, True])
def test_costs_count_exponents_as_they_are_stored(rearrange: bool) -> None:
    graph, ctx = network(), context()
    parts = layers(graph)
    bits = dict(zip([layer.name for layer in parts], (3, 8, 5, 4), strict=True))
    widths = {parts[0].name: Widths(0, ((3, 3), (37, 2)))}
    blocked = Pipeline((Calibrate(), RearrangeBlocks(block=8, rearrange=rearrange))).run(graph, ctx)
    costs = CostModel.of(blocked, layers(blocked), (), None, ctx.facts.get(WeightBlocks))
    ctx.facts.put(BitPlan(bits, {}, widths))
    integer = Pipeline((Quantize(), RoundWeights(), Dyadic())).run(blocked, ctx)
    counted = [costs.stored(layer, widths.get(layer.name, bits[layer.name])) for layer in costs.layers]
    sizes = layer_sizes(integer)
    assert counted == [(s.bytes, s.bits) for s in sizes]
    assert [s.layout for s in sizes] == ["0/3:3,37:2", None, "8^2", "8^2"]
    whole = costs.layer(costs.layers[2], 5, None)
    assert whole["size"] == sizes[2].bytes > packed_size(costs.layers[2].parameters, 5)
    assert whole["bits"] == pytest.approx(sizes[2].bits * costs.layers[2].parameters / sum(p.parameters for p in parts))


def test_bits_are_chosen_with_their_exponents_in_the_budget() -> None:
    asked: dict[str, dict[str, Any]] = {
        "rearrange-blocks": {"block": 8},
        "mixed-precision": {"budgets": {"size": 9000}},
    }
    names = [p.name for p in default(asked)]
    assert names.index("calibrate") < names.index("rearrange-blocks") < names.index("sensitivity-perturbation")
    used = []
    for option in ({"rearrange-blocks": {"block": 8, "rearrange": False}}, {}):
        ctx = context()
        integer = Pipeline(default({**option, "precision-groups": {"budgets": {"size": 9000}, "scored_by": {}}})).run(
            network(), ctx
        )
        used.append((ctx.facts.get(PrecisionGroupsFound).used["size"], sum(s.bytes for s in layer_sizes(integer))))
    assert all(predicted == stored <= 9000 for predicted, stored in used)
