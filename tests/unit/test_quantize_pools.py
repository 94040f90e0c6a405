"""Pooled features get the bits that the dense layers behind them can take, and no sum overflows."""

from typing import Any

import numpy as np
import pytest

from qcc.ir.bounds import certificates
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, producers
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import Capabilities
from qcc.verify.compare import sqnr_db
from qcc.verify.interp import evaluate
from qcc_passes.calibrate import Calibrate
from qcc_passes.dyadic import Dyadic
from qcc_passes.quantize import Quantize


def network(channels: int, *, also_output: bool = False) -> Graph:
    """Global average pooling and a dense layer whose weights are as large as they get."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("head")
    x = b.input("x", (BATCH, channels, 4, 4))
    pooled = b.op("reduce_mean", [x], name="pooled", axes=(2, 3), keepdims=False)
    w = b.constant(np.sign(rng.normal(size=(5, channels))).astype(np.float32), "w")
    logits = b.op("dense", [pooled, w, b.constant(np.zeros(5, np.float32), "b")], name="logits")
    return b.graph([logits, pooled] if also_output else [logits])


def compiled(graph: Graph, activation_bits: frozenset[int], **options: Any) -> tuple[Graph, dict[str, Any]]:
    ctx = PassContext(capabilities=Capabilities(activation_bits=activation_bits))
    shape = graph.inputs[0].type.shape
    data = {"x": np.abs(np.random.default_rng(1).normal(size=(32, *shape[1:]))).astype(np.float32)}
    ctx.facts.put(CalibrationData(data))
    return Pipeline((Calibrate(), Quantize(**options), Dyadic())).run(graph, ctx), data


@pytest.mark.parametrize(("channels", "bits"), [(8, 16), (64, 16), (512, 15), (1280, 13)])
def test_bits_fall_as_the_sum_grows(channels: int, bits: int) -> None:
    graph, _ = compiled(network(channels), frozenset({8, 16}))
    quant = producers(graph)["pooled"].result.type.quant
    assert quant is not None
    assert quant.bits == bits
    assert certificates(graph)["logits"].accumulator.bits <= 32


@pytest.mark.parametrize(
    ("able", "options", "also_output"),
    [
        (frozenset({8}), {}, False),
        (frozenset({8, 16}), {"wide_pools": False}, False),
        (frozenset({8, 16}), {"wide_outputs": False}, True),
    ],
)
def test_eight_bits_where_wide_ones_are_not_to_be_had(
    able: frozenset[int], options: dict[str, Any], also_output: bool
) -> None:
    graph, _ = compiled(network(16, also_output=also_output), able, **options)
    assert producers(graph)["pooled"].result.type.dtype == "u8"


def test_wide_pools_are_worth_having() -> None:
    model = network(64)
    found = []
    for wide in (False, True):
        graph, data = compiled(model, frozenset({8, 16}), wide_pools=wide)
        (x,), (y,) = graph.inputs, graph.outputs
        assert x.type.quant is not None
        assert y.type.quant is not None
        snapped = x.type.quant.quantize(data["x"])
        exact = evaluate(model, {"x": x.type.quant.dequantize(snapped)})["logits"]
        found.append(sqnr_db(exact, y.type.quant.dequantize(evaluate(graph, {"x": snapped})["logits"])))
    assert found[1] > found[0] + 20
