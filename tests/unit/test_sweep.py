"""A sweep computes on both sides what the graph computes, and what it measures is what layers read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op, Stage, constant, constants
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.interp import evaluate
from qcc.verify.windows import Window, convolve
from qcc_passes.calibrate import Calibrate
from qcc_passes.held_out import HeldOut, limits
from qcc_passes.moments import Moments, columns, input_moments, steady
from qcc_passes.quantize import Quantize
from qcc_passes.samples import affordable, parts
from qcc_passes.sweep import Step, Sweep

Array = NDArray[Any]
WINDOW: dict[str, Any] = {"strides": (2, 1), "pads": (1, 0, 1, 2), "dilations": (1, 2)}


def network(batch: int = BATCH) -> Graph:
    """Conv (Relu) - grouped conv (Relu6, residual) - concat - max pool - mean - dense."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")

    def layer(x: Any, out: int, groups: int, name: str, *r: Any, **attrs: Any) -> Any:
        w = b.constant(rng.normal(size=(out, x.type.shape[1] // groups, 3, 3)).astype(np.float32) / 3, f"{name}.w")
        bias = b.constant(rng.normal(size=out).astype(np.float32) / 4, f"{name}.b")
        window: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
        return b.op("conv2d", [x, w, bias, *r], name=name, groups=groups, **window, **attrs)

    x = b.input("x", (batch, 3, 8, 8))
    y = layer(x, 8, 1, "first", lo=0.0)
    z = layer(y, 8, 2, "grouped", y, lo=0.0, hi=6.0)
    c = b.op("concat", [y, z], name="both", axis=1)
    pool: dict[str, Any] = {"kernel": (2, 2), "strides": (2, 2), "pads": (0,) * 4, "dilations": (1, 1)}
    p = b.op("max_pool2d", [c], name="pooled", **pool)
    m = b.op("reduce_mean", [p], name="mean", axes=(2, 3), keepdims=False)
    w = b.constant(rng.normal(size=(5, 16)).astype(np.float32), "w")
    return b.graph([b.op("dense", [m, w, b.constant(np.zeros(5, np.float32), "b")], name="logits")])


def prepared(batch: int = BATCH) -> tuple[Graph, Graph, PassContext]:
    rng = np.random.default_rng(1)
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": rng.normal(size=(24, 3, 8, 8)).astype(np.float32)}))
    graph = network(batch)
    return graph, Pipeline((Calibrate(), Quantize())).run(graph, ctx), ctx


@pytest.mark.parametrize("batch", [BATCH, 4])
def test_both_sides_compute_what_the_graph_computes(batch: int) -> None:
    graph, quantized, ctx = prepared(batch)
    runs = parts(quantized, ctx.facts.get(CalibrationData), 12, 4, 1)
    names = [o.result.name for o in graph.ops if o.kind != "constant"]
    expected = [[evaluate(g, run, keep=names) for run in runs] for g in (graph, quantized)]
    seen: list[str] = []

    def revise(step: Step) -> Sequence[Op]:
        seen.append(step.op.result.name)
        variable = step.op.operands[0].name
        if step.op.kind in ("conv2d", "dense"):
            for part, pair in enumerate(step.unclamped()):
                lo, hi = step.op.float_attr("lo", -np.inf), step.op.float_attr("hi", np.inf)
                wanted = expected[0][part][step.op.result.name]
                np.testing.assert_allclose(np.clip(pair[0], lo, hi), wanted, atol=1e-4)
        for part in range(len(runs)) if variable != "x" else ():
            for side, array in zip(expected, step.operand(0, part), strict=True):
                assert np.mean(np.abs(array - side[part][variable]) > 1e-4) < 0.01
        return ()

    assert Sweep(quantized, runs, 1).run(revise).ops == quantized.ops
    assert seen == names


def test_what_follows_sees_the_revised_constants() -> None:
    _, quantized, ctx = prepared()
    runs = parts(quantized, ctx.facts.get(CalibrationData), 4, 4, 1)
    read: list[Array] = []

    def revise(step: Step) -> Sequence[Op]:
        if step.op.result.name == "first":
            return [constant("first.b", np.full(8, -100, np.float32))]
        if step.op.result.name == "grouped":
            read.extend(step.operand(0, 0))
        return ()

    after = Sweep(quantized, runs, 1).run(revise)
    assert (constants(after)["first.b"] == -100).all()
    assert read[0].any()
    assert not read[1].any()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_columns_are_what_the_weights_multiply(groups: int) -> None:
    rng = np.random.default_rng(2)
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 4, 7, 6))
    w = rng.normal(size=(8, 4 // groups, 3, 2)).astype(np.float32)
    y = b.op("conv2d", [x, b.constant(w), b.constant(np.zeros(8, np.float32))], groups=groups, **WINDOW)
    o = b.graph([y]).ops[-1]
    data = rng.normal(size=(3, 4, 7, 6)).astype(np.float32)
    wanted = convolve(data, w, Window.of(o), groups)
    found = w.reshape(groups, 8 // groups, -1) @ columns(o, data, 10_000, 0)
    rows = wanted.transpose(1, 0, 2, 3).reshape(8, -1)
    assert np.allclose(np.sort(found.reshape(8, -1)), np.sort(rows), atol=1e-4)
    assert columns(o, data, 5, 0).shape == (groups, 4 // groups * 6, 15)


def test_moments_measure_the_error_that_a_bias_cannot_take_back() -> None:
    rng = np.random.default_rng(3)
    found = rng.normal(size=(3, 4, 500)) + 2
    real, approx = rng.normal(size=(2, 3, 5, 4))
    difference = (real - approx) @ found
    centred = difference - difference.mean(axis=-1, keepdims=True)
    moments = Moments.of(found)
    assert moments.errors(real, approx) == pytest.approx(np.square(centred).sum(axis=-1), rel=1e-6)
    assert moments.energy(real) == pytest.approx(np.square(real @ found).sum(), rel=1e-6)
    halves = [Moments.of(part) for part in np.split(found, 2, -1)]
    halves[0].add(halves[1])
    assert halves[0].errors(real, approx) == pytest.approx(moments.errors(real, approx))


def test_biases_take_back_what_the_inputs_lost() -> None:
    rng = np.random.default_rng(3)
    exact, found = rng.normal(size=(2, 3, 4, 500)) + 2
    real, approx = rng.normal(size=(2, 3, 5, 4))
    moments = Moments.of(found, exact)
    assert moments.shift(real, approx) == pytest.approx((real @ exact - approx @ found).mean(axis=-1))
    own, cross = moments.centred()
    y, x = (a - a.mean(axis=-1, keepdims=True) for a in (found, exact))
    assert own == pytest.approx(y @ y.swapaxes(-1, -2) / 500)
    assert cross == pytest.approx(x @ y.swapaxes(-1, -2) / 500)


def test_places_of_moments_may_be_weighed() -> None:
    rng = np.random.default_rng(3)
    exact, found = rng.normal(size=(2, 1, 4, 60))
    weights = np.repeat([1.0, 2.0], 30)
    twice = [np.concatenate([x, x[..., 30:]], axis=-1) for x in (found, exact)]
    weighed, repeated = Moments.of(found, exact, weights), Moments.of(*twice)
    real, approx = rng.normal(size=(2, 1, 5, 4))
    assert weighed.count == repeated.count
    assert weighed.errors(real, approx) == pytest.approx(repeated.errors(real, approx))
    assert weighed.shift(real, approx) == pytest.approx(repeated.shift(real, approx))


def test_places_with_unusual_errors_count_less() -> None:
    rng = np.random.default_rng(5)
    exact = rng.normal(size=(2, 3, 100))
    drift = np.full(100, 0.1)
    drift[7] = 10
    weights = steady(exact, exact + drift)
    assert weights[7] < 1e-3
    assert (np.delete(weights, 7) == 1).all()
    assert (steady(exact, exact) == 1).all()


def test_outputs_that_the_clamp_stops_have_no_error() -> None:
    rng = np.random.default_rng(6)
    b = GraphBuilder("net", Stage.QUANTIZED)
    x = b.input("x", (BATCH, 4, 1, 1), quant=Quant(8, True, (Dyadic.of(0.1),)))
    arrays = [b.constant(rng.normal(size=(3, 4, 1, 1)).astype(np.float32)), b.constant(np.ones(3, np.float32))]
    options: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1, "lo": 0.0}
    grid = Quant(8, False, (Dyadic.of(0.01),))
    o = b.graph([b.op("conv2d", [x, *arrays], quant=grid, **options)]).ops[-1]
    found = rng.normal(size=(1, 4, 300))
    fit = Moments.of(found, found)
    judge = HeldOut.of(o, found, found, np.ones(3, np.float32), fit)
    real, approx = rng.normal(size=(2, 1, 3, 4))
    outputs = [
        np.clip(w[0] @ found[0] + c, 0, 2.55) for w, c in ((real, 1), (approx, 1 + fit.shift(real, approx)[0][:, None]))
    ]
    assert judge.errors(real, approx)[0] == pytest.approx(np.square(outputs[0] - outputs[1]).sum(axis=1), rel=1e-4)
    assert judge.energy(real) == pytest.approx(np.square(outputs[0]).sum(), rel=1e-4)
    assert limits(o) == pytest.approx((0, 2.55))


def test_layer_inputs_are_measured_in_one_run() -> None:
    graph, _, ctx = prepared()
    runs = parts(graph, ctx.facts.get(CalibrationData), 8, 4, 1)
    chosen = [o for o in graph.ops if o.kind in ("conv2d", "dense")]
    found = input_moments(graph, chosen, runs, 1000, ctx)
    values = [evaluate(graph, run, keep=["mean"])["mean"] for run in runs]
    mean = np.concatenate(values)
    assert np.allclose(found["logits"].own[0], mean.T @ mean, rtol=1e-4)
    assert found["first"].count == 8 * 64
    assert found["grouped"].own.shape == (2, 36, 36)


def test_parts_are_spread_over_the_data_and_fill_fixed_batches() -> None:
    data = CalibrationData({"x": np.arange(24, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8))})
    firsts = [run["x"][:, 0, 0, 0].tolist() for run in parts(network(), data, 6, 2, 1)]
    assert firsts == [[0, 4], [8, 12], [16, 20]]
    fixed = parts(network(4), data, 6, 2, 1)
    assert [len(run["x"]) for run in fixed] == [4]
    assert affordable(network()) == affordable(network(4)) > 1000
