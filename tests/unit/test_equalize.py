"""Equalizing activations that only depthwise convolutions read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.interp import evaluate
from qcc.verify.layers import LayerTable
from qcc_passes.calibrate import Calibrate
from qcc_passes.dyadic import Dyadic
from qcc_passes.equalize import Equalize
from qcc_passes.equalize_choice import channel_scales
from qcc_passes.quantize import Quantize

WINDOW: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1)}
RELU = {"lo": 0.0}
DATA = np.random.default_rng(5).normal(size=(32, 3, 5, 5)).astype(np.float32)


def _network(clamp: Mapping[str, float], *, shared: bool = False) -> Graph:
    """conv2d to 4 channels of very different ranges → clamp → depthwise 3x3, two outputs per channel."""
    rng = np.random.default_rng(3)
    b = GraphBuilder("net")

    def constant(*shape: int, scale: Any = 1.0) -> Value:
        return b.constant((rng.normal(size=shape) * scale).astype(np.float32), "c")

    x = b.input("x", (BATCH, 3, 5, 5))
    ranges = np.array([1.0, 0.1, 0.01, 0.0]).reshape(-1, 1, 1, 1)
    w = constant(4, 3, 1, 1, scale=ranges)
    attrs: dict[str, Any] = {"groups": 1, "pads": (0,) * 4, **WINDOW, **clamp}
    y = b.op("conv2d", [x, w, b.constant(np.zeros(4, np.float32), "b")], name="y", **attrs)
    z = b.op("conv2d", [y, constant(8, 1, 3, 3), constant(8)], name="z", groups=4, pads=(1,) * 4, **WINDOW)
    return b.graph([z, y] if shared else [z])


def _equalize(graph: Graph, data: NDArray[Any] = DATA) -> Graph:
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": data}))
    return Pipeline((Equalize(limit=1000),)).run(graph, ctx)


def _ranges(graph: Graph) -> NDArray[Any]:
    name = next(o.result.name for o in graph.ops if o.result.name.startswith("y"))
    values = evaluate(graph, {"x": DATA}, keep=[name])[name]
    extreme: NDArray[Any] = np.abs(values).max(axis=(0, 2, 3))
    return extreme


@pytest.mark.parametrize("clamp", [{"lo": 0.0}, {}, {"lo": 0.0, "hi": 60.0}])
def test_ranges_become_alike_and_the_function_stays(clamp: dict[str, float]) -> None:
    graph = _network(clamp)
    after = _equalize(graph)
    assert _ranges(graph)[:3].max() > 50 * _ranges(graph)[:3].min()
    assert _ranges(after)[:3].max() < 1.6 * _ranges(after)[:3].min()
    wanted, got = (evaluate(g, {"x": DATA * 0.9})["z"] for g in (graph, after))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_clamp_that_binds_stays_and_one_that_never_does_goes() -> None:
    peak = float(_ranges(_network(RELU)).max())
    binding, idle = _equalize(_network({**RELU, "hi": peak / 2})), _equalize(_network({**RELU, "hi": 2 * peak}))
    clamps = [next(o for o in g.ops if o.result.name.startswith("y")).attrs.get("hi") for g in (binding, idle)]
    assert clamps == [peak / 2, None]
    wanted, got = (evaluate(g, {"x": DATA})["z"] for g in (_network({**RELU, "hi": peak / 2}), binding))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_other_readers_forbid_it() -> None:
    graph = _network(RELU, shared=True)
    assert _equalize(graph).ops == graph.ops


def test_residuals_forbid_it() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 3, 5, 5))
    w, bias = b.constant(np.ones((3, 1, 1, 1), np.float32)), b.constant(np.zeros(3, np.float32))
    attrs: dict[str, Any] = {"groups": 3, "pads": (0,) * 4, **WINDOW}
    y = b.op("conv2d", [x, w, bias, x], name="y", **attrs)
    z = b.op("conv2d", [y, w, bias, y], name="z", **attrs)
    graph = b.graph([z])
    assert _equalize(graph).ops == graph.ops


def test_without_such_edges_no_data_is_touched() -> None:
    b = GraphBuilder("net")
    graph = b.graph([b.op("softmax", [b.input("x", (BATCH, 3))], axis=1)])
    assert _equalize(graph, np.zeros((1, 9), np.float32)) is graph


def test_factors() -> None:
    low, high = np.array([-1.0, -0.5, 0.0, 0.0]), np.array([2.0, 0.25, 0.0, 1e-9])
    np.testing.assert_array_equal(channel_scales(low, high, 64.0), [1.0, 2.0, 1.0, 64.0])


def test_data_are_needed() -> None:
    with pytest.raises(PassError, match="CalibrationData"):
        Equalize().run(_network(RELU), PassContext())


def test_the_table_of_layers_scales_equalized_values_back() -> None:
    graph = _network(RELU)
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": DATA}))
    steps = (Equalize(limit=1000), Calibrate(), Quantize(exact_inputs=False), Dyadic())
    integer = Pipeline(steps).run(graph, ctx)
    (x,) = integer.inputs
    assert x.type.quant is not None
    table = LayerTable(integer, graph)
    table.add({"x": DATA}, {"x": x.type.quant.quantize(DATA)})
    rows = {row.value: row for row in table.rows()}
    assert rows["y"].sqnr_db > 35
    assert rows["z"].local_db is not None
    assert rows["z"].local_db > 25
