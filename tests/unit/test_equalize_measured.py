"""Equalizing each activation by what leaves the least error where it is read: factors, shifts, or nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import Capabilities
from qcc.verify.interp import evaluate
from qcc_passes.calibrate import Calibrate
from qcc_passes.equalize import Equalize
from qcc_passes.equalize_choice import smooth_scales
from qcc_passes.quantize import Quantize

Array = NDArray[Any]
WINDOW: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1)}
DATA = np.random.default_rng(5).normal(size=(32, 6, 5, 5)).astype(np.float32)


def network(
    gains: Any = 1.0, offsets: Any = 0.0, columns: Any = 1.0, *, relu: bool = False, pad: int = 0, pool: bool = False
) -> Graph:
    """conv2d to 6 channels of ``gains`` and ``offsets`` → conv2d that reads them by weights of size ``columns``."""
    rng = np.random.default_rng(3)
    b = GraphBuilder("net")
    w = np.eye(6).reshape(6, 6, 1, 1) * np.broadcast_to(gains, 6).reshape(6, 1, 1, 1)
    bias = np.broadcast_to(np.float32(offsets), 6).astype(np.float32)
    clamp = {"lo": 0.0} if relu else {}
    attrs: dict[str, Any] = {"groups": 1, "pads": (0,) * 4, **WINDOW, **clamp}
    y = b.op(
        "conv2d",
        [b.input("x", (BATCH, 6, 5, 5)), b.constant(w.astype(np.float32)), b.constant(bias)],
        name="y",
        **attrs,
    )
    if pool:
        y = b.op("max_pool2d", [y], kernel=(2, 2), pads=(0,) * 4, **WINDOW)
    v = rng.normal(size=(8, 6, 1 + 2 * pad, 1 + 2 * pad)) * np.broadcast_to(columns, 6).reshape(1, 6, 1, 1)
    operands = [y, b.constant(v.astype(np.float32)), b.constant(np.zeros(8, np.float32))]
    return b.graph([b.op("conv2d", operands, name="z", groups=1, pads=(pad,) * 4, **WINDOW)])


def equalized(graph: Graph, **options: Any) -> Graph:
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": DATA}))
    return Pipeline((Equalize(measured=True, **options),)).run(graph, ctx)


def error(graph: Graph, reference: Graph) -> float:
    """Squared error of the output once quantized, around its mean by channel."""
    ctx = PassContext(capabilities=Capabilities(activation_bits=frozenset({8, 16})))  # the input has 16
    ctx.facts.put(CalibrationData({"x": DATA}))
    passes = (Calibrate(), Quantize(exact_inputs=False, wide_inputs=True))
    found = outputs(Pipeline(passes).run(graph, ctx)) - outputs(reference)
    return float(found.var(axis=(0, 2, 3)).sum())


def outputs(graph: Graph) -> Array:
    return evaluate(graph, {"x": DATA})["z"].astype(np.float64)


def between(graph: Graph) -> str:
    """What the value between the convolutions is called."""
    return next(o.result.name for o in graph.ops if o.kind == "conv2d")


OFFSETS = np.array([40.0, -40, 20, 0, 5, -30])
GAINS = np.array([1.0, 0.02, 0.1, 0.5, 0.05, 1])


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"offsets": OFFSETS}, "y.shifted"),
        ({"offsets": OFFSETS, "gains": GAINS}, "y.shifted"),
        ({"offsets": OFFSETS, "gains": GAINS, "pool": True}, "y.shifted"),
        ({"offsets": np.abs(OFFSETS) + 5, "relu": True}, "y.shifted"),
        ({"offsets": OFFSETS, "gains": GAINS, "pad": 1}, "y.equalized"),
        ({"gains": GAINS}, "y.equalized"),
    ],
)
def test_the_function_stays_and_the_error_falls(options: dict[str, Any], name: str) -> None:
    graph = network(**options)
    after = equalized(graph)
    assert between(after) == name
    wanted = outputs(graph)
    np.testing.assert_allclose(outputs(after), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert error(after, graph) < 0.8 * error(graph, graph)


def test_what_is_never_below_something_is_absorbed() -> None:
    """Also in a channel that a Relu cuts off at zero, but which never comes there."""
    graph = network(offsets=np.array([9.0, 9, 9, 9, 0, 0]), relu=True)
    seen = evaluate(equalized(graph, limit=1), {"x": DATA}, keep=["y.shifted"])["y.shifted"]
    assert np.allclose(seen.min(axis=(0, 2, 3)), 0, atol=1e-5)
    assert seen.max() < 9


def test_factors_that_cost_are_not_taken() -> None:
    """Channels that hardly count take up as much of the weights' error as the one that does."""
    narrow = np.array([1.0, 0.1, 0.1, 0.1, 0.1, 0.1])
    graph = network(narrow, columns=narrow)
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": DATA}))
    fixed = Pipeline((Equalize(strength=1, limit=1000),)).run(graph, ctx)
    plain = error(graph, graph)
    assert error(fixed, graph) > 1.2 * plain
    assert error(equalized(graph, strength=1, limit=1000), graph) <= plain


def test_factors_mind_the_weights() -> None:
    low, high, read = np.zeros(4), np.array([4.0, 1.0, 1.0, 0.0]), np.array([1.0, 1.0, 4.0, 1.0])
    assert smooth_scales(low, high, read, 16.0, 0.5).tolist() == [1.0, 2.0, 4.0, 1.0]
    assert smooth_scales(low, high, read, 3.0, 0.5).tolist() == [1.0, 2.0, 3.0, 1.0]
    assert smooth_scales(low, high, np.zeros(4), 16.0, 0.5).tolist() == [1.0] * 4
