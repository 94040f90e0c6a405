"""Sensitivity on whatever compiles: fixed batches, several outputs, interruptions, labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.errors import ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.calibrate import Calibrate
from qcc_passes.perturbation import MeasurePerturbations, Perturbations
from qcc_passes.sensitivity import GaussNewtonTrace, Sensitivities


def network(batch: int = BATCH, outputs: int = 1) -> Graph:
    """Convolution, depthwise convolution, pooling, dense; the second output is the pooled map."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")
    x = b.input("x", (batch, 2, 6, 6))
    attrs: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "lo": 0.0}
    for name, shape, groups in (("conv", (6, 2, 3, 3), 1), ("depthwise", (6, 1, 3, 3), 6)):
        w = b.constant(rng.normal(size=shape).astype(np.float32) / 3, f"w_{name}")
        bias = b.constant(rng.normal(size=6).astype(np.float32) / 4, f"b_{name}")
        x = b.op("conv2d", [x, w, bias], name=name, groups=groups, **attrs)
    pooled = b.op("reduce_mean", [x], name="pooled", axes=(2, 3), keepdims=False)
    w = b.constant(rng.normal(size=(4, 6)).astype(np.float32), "w_logits")
    logits = b.op("dense", [pooled, w, b.constant(np.zeros(4, np.float32), "b_logits")], name="logits")
    return b.graph([logits, x][:outputs])


def context(samples: int = 96, labels: Any = None, cache: Path | None = None) -> PassContext:
    ctx = PassContext(cache=cache)
    x = np.random.default_rng(1).normal(size=(samples, 2, 6, 6)).astype(np.float32)
    ctx.facts.put(CalibrationData({"x": x}, labels))
    return ctx


def trace(graph: Graph, ctx: PassContext, **options: Any) -> dict[str, float]:
    GaussNewtonTrace(held_out=0, **options).run(graph, ctx)
    return dict(ctx.facts.get(Sensitivities).by_method["sensitivity-gauss-newton"].curvature)


def test_a_fixed_batch_gives_what_an_open_one_gives() -> None:
    fixed = trace(network(8), context(), batch=3)
    assert fixed == pytest.approx(trace(network(), context(), batch=8))


def test_samples_that_fill_no_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes 8 samples at once, but only 5 are given"):
        trace(network(8), context(5))


def test_plain_outputs_add_to_logits() -> None:
    both, one = trace(network(outputs=2), context()), trace(network(), context())
    assert both["conv"] > one["conv"]
    assert both["logits"] == pytest.approx(one["logits"], rel=0.3)


class StoppedError(Exception):
    """What stops a measurement in these tests."""


@pytest.mark.parametrize("kind", [GaussNewtonTrace, MeasurePerturbations])
def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path, kind: Any) -> None:
    fact = Sensitivities if kind is GaussNewtonTrace else Perturbations
    whole = context()
    kind(batch=8).run(network(), whole)

    def stop(what: str, done: int, total: int) -> None:
        if what == kind.name and done == 5:
            raise StoppedError

    ctx = context(cache=tmp_path)
    ctx.progress = stop
    with pytest.raises(StoppedError):
        kind(batch=8).run(network(), ctx)
    again = context(cache=tmp_path)
    steps: list[int] = []
    again.progress = lambda what, done, total: steps.append(done) if what == kind.name else None
    kind(batch=8).run(network(), again)
    assert steps[0] == 6
    if fact is Perturbations:
        assert np.allclose(again.facts.get(Perturbations).gram, whole.facts.get(Perturbations).gram)
    else:
        assert again.facts.get(Sensitivities) == whole.facts.get(Sensitivities)


def test_other_weights_or_labels_are_not_taken_from_the_cache(tmp_path: Path) -> None:
    ctx = context(cache=tmp_path)
    trace(network(), ctx)
    trace(network(outputs=2), context(cache=tmp_path))
    trace(network(), context(labels=np.zeros(96, np.int64), cache=tmp_path))
    assert len(list(tmp_path.glob("sensitivity-gauss-newton-*.npz"))) == 3


def test_first_order_changes_agree_with_exact_ones() -> None:
    found = []
    for method in ("exact", "linear"):
        ctx = context(256)
        Calibrate().run(network(), ctx)
        MeasurePerturbations(
            method=method,
            weight_bits=(4, 6),
            activation_bits=(5, 8),
            probes=16,
            held_out=0,
        ).run(network(), ctx)
        found.append(ctx.facts.get(Perturbations))
    exact, linear = found
    assert exact.options == linear.options
    assert ("activation", "conv", 5) in exact.options
    own = np.diag(exact.gram)
    assert np.diag(linear.gram) == pytest.approx(own, rel=0.35)
    # Inter-layer terms as well, relative to the choices' own.
    relative = (linear.gram - exact.gram) / np.sqrt(np.outer(own, own))
    assert np.quantile(np.abs(relative), 0.9) < 0.35


def test_labels_give_the_change_of_the_loss() -> None:
    labels = np.random.default_rng(2).integers(0, 4, 96)
    ctx = context(labels=labels)
    MeasurePerturbations(method="exact", weight_bits=(2, 8)).run(network(), ctx)
    loss = ctx.facts.get(Perturbations).loss_change()
    assert loss is not None
    assert abs(loss["weight", "conv", 2]) > abs(loss["weight", "conv", 8])


@pytest.mark.parametrize("kind", [GaussNewtonTrace, MeasurePerturbations])
def test_labels_of_the_wrong_length_are_refused(kind: Any) -> None:
    with pytest.raises(ConfigError, match="95 labels do not fit 96 samples"):
        kind().run(network(), context(labels=np.zeros(95, np.int64)))


def test_few_samples_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    MeasurePerturbations(weight_bits=(4,)).run(network(), context(20))
    GaussNewtonTrace().run(network(), context(20))
    assert "12 samples overfit the inter-layer terms; 512 would do" in caplog.text
    assert "12 samples are few to rank layers by; 128 would do" in caplog.text
