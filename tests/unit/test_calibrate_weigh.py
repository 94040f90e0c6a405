"""Which values' errors calibration weighs, and what that keeps."""

import numpy as np
import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.calibrate import Calibrate
from qcc_passes.calibrate_weigh import _batches, _heads
from qcc_passes.facts import Ranges


def classifier(end: str | None) -> Graph:
    b = GraphBuilder("g")
    x = b.input("x", (BATCH, 8))
    weights = np.random.default_rng(0).normal(0, 1, (10, 8)).astype(np.float32)
    logits = b.op("dense", [x, b.constant(weights), b.constant(np.zeros(10, np.float32))], name="logits")
    if end is None:
        return b.graph([logits])
    if end == "softmax":
        return b.graph([b.op("softmax", [logits], name="y", axis=1)])
    return b.graph([b.op("argmax", [logits], name="y", axis=1, keepdims=False)])


@pytest.mark.parametrize("end", ["softmax", "argmax", None])
def test_what_counts_are_the_logits(end: str | None) -> None:
    assert _heads(classifier(end)) == ["logits"]


def test_a_constant_output_counts_for_nothing() -> None:
    b = GraphBuilder("g")
    x = b.input("x", (BATCH, 8))
    graph = b.graph([b.op("clip", [x], name="y", lo=0.0), b.constant(np.ones(3, np.float32), "k")])
    assert _heads(graph) == ["y"]


def test_a_final_softmax_does_not_let_unlikely_classes_be_clipped() -> None:
    ranges = []
    for end in (None, "softmax"):
        ctx = PassContext()
        samples = np.random.default_rng(1).normal(0, 2, (64, 8)).astype(np.float32)
        ctx.facts.put(CalibrationData({"x": samples}))
        Calibrate().run(classifier(end), ctx)
        ranges.append(ctx.facts.get(Ranges).choose(["logits"]))
    assert ranges[0] == ranges[1]


def test_small_networks_are_weighed_on_all_samples() -> None:
    data = CalibrationData({"x": np.zeros((200, 8), np.float32)})
    size, chosen = _batches(classifier(None), data, 32)
    assert size >= 200
    assert chosen.tolist() == list(range(200))
