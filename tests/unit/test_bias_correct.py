"""Bias correction: channel means meet fp32's, odd images do not move them, and no layer gets worse."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, op, producers
from qcc.ir.types import BATCH
from qcc.ir.verify import verify
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.compare import sqnr_db
from qcc.verify.interp import evaluate
from qcc_passes.bias_correct import BiasCorrect, _errors
from qcc_passes.calibrate import Calibrate
from qcc_passes.facts import BiasCorrections
from qcc_passes.quantize import Quantize

Array = NDArray[Any]


def network(shared_bias: bool = False, batch: int = BATCH) -> Graph:
    """Conv, depthwise, residual conv, dense on [N, 3, 8, 8]; few weights per channel, so rounding moves means."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net")

    def layer(x: Any, out: int, groups: int, name: str, *r: Any, **attrs: Any) -> Any:
        w = b.constant(rng.normal(size=(out, x.type.shape[1] // groups, 3, 3)).astype(np.float32) / 3, f"{name}.w")
        bias = zero if shared_bias else b.constant(rng.normal(size=out).astype(np.float32) / 4, f"{name}.b")
        window: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
        return b.op("conv2d", [x, w, bias, *r], name=name, groups=groups, **window, **attrs)

    zero = b.constant(np.zeros(8, np.float32), "zero")
    x = b.input("x", (batch, 3, 8, 8))
    y = layer(x, 8, 1, "first", lo=0.0)
    z = layer(y, 8, 8, "depthwise", lo=0.0, hi=6.0)
    z = layer(z, 8, 1, "residual", y, lo=0.0)
    z = b.op("reduce_mean", [z], axes=(2, 3), keepdims=False)
    w = b.constant(rng.normal(size=(5, 8)).astype(np.float32), "w")
    return b.graph([b.op("dense", [z, w, b.constant(np.zeros(5, np.float32), "b")], name="logits")])


def images(count: int, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"x": (rng.normal(size=(count, 3, 8, 8)) + rng.normal(size=(count, 3, 1, 1))).astype(np.float32)}


def quantized(graph: Graph, data: dict[str, Array], bits: int = 3) -> tuple[Graph, PassContext]:
    ctx = PassContext()
    ctx.capabilities = ctx.capabilities.model_copy(update={"weight_bits": frozenset({3, 8})})
    ctx.facts.put(CalibrationData(data))
    return Pipeline((Calibrate(), Quantize(weight_bits=bits))).run(graph, ctx), ctx


@pytest.mark.parametrize("shared", [False, True])
def test_error_falls_on_unseen_images(shared: bool) -> None:
    graph = network(shared)
    before, ctx = quantized(graph, images(64, 1))
    after = BiasCorrect().run(before, ctx)
    verify(after)
    assert len(ctx.facts.get(BiasCorrections).accepted) >= 3
    test = images(200, 2)
    exact = evaluate(graph, test)["logits"]
    gains = [sqnr_db(exact, evaluate(g, test)["logits"]) for g in (before, after)]
    assert gains[1] > gains[0] + 3


def test_elements_that_the_clamp_stops_hardly_count() -> None:
    graph = network()
    o = producers(graph)["first"]  # a Relu
    exact = np.array([2.0, 1.0, -1.0, -3.0], np.float32).reshape(1, 1, 2, 2)
    error = np.array([0.5, 0.5, -9.0, -9.0], np.float32).reshape(1, 1, 2, 2)
    assert _errors(o, exact, exact - error)[0, 0] == pytest.approx((0.5 * 2 - 9 * 0.1) / 2.1)
    free = op(o.kind, o.operands, o.results, **{k: a for k, a in o.attrs.items() if k != "lo"})
    assert _errors(free, exact, exact - error)[0, 0] == pytest.approx(error.mean())


def test_one_odd_image_does_not_poison_the_correction() -> None:
    graph = network()
    data = images(64, 1)
    odd = {"x": data["x"].copy()}
    odd["x"][7] *= 30
    biases = []
    for calibration in (data, odd):
        before, ctx = quantized(graph, data)
        after = BiasCorrect(held_out=0.05).run(before, _with(ctx, calibration))
        made = producers(after)
        biases.append({n: made[made[n].operands[2].name].array for n in ctx.facts.get(BiasCorrections).accepted})
    for name in set(biases[0]) & set(biases[1]):
        assert np.abs(biases[0][name] - biases[1][name]).max() < 0.1, name


def _with(ctx: PassContext, data: dict[str, Array]) -> PassContext:
    ctx.facts.put(CalibrationData(data))
    return ctx


def test_what_does_not_help_held_out_images_is_refused() -> None:
    """At 8 bits with exact weights nothing is left to correct, up to noise; means never move by much."""
    shift = BiasCorrect()._shift(np.tile([[1.0, -2.0]], (8, 1)))
    assert shift is not None
    assert np.allclose(shift, [1.0, -2.0])
    changed_sign = np.concatenate([np.ones((6, 1)), -np.ones((2, 1))])
    assert BiasCorrect()._shift(changed_sign) is None


def test_layers_that_share_a_bias_get_their_own() -> None:
    before, ctx = quantized(network(shared_bias=True), images(64, 1))
    after = BiasCorrect().run(before, ctx)
    made = producers(after)
    names = [made[n].operands[2].name for n in ctx.facts.get(BiasCorrections).accepted]
    assert len(set(names)) == len(names) > 1


def test_a_fixed_batch_is_corrected_alike() -> None:
    data = images(64, 1)
    biases = []
    for batch in (BATCH, 4):
        before, ctx = quantized(network(batch=batch), data)
        after = BiasCorrect(samples=64).run(before, ctx)
        made = producers(after)
        biases.append({n: made[made[n].operands[2].name].array for n in ctx.facts.get(BiasCorrections).accepted})
    assert biases[0].keys() == biases[1].keys()
    assert all(np.allclose(b, biases[1][name], atol=0.05) for name, b in biases[0].items())
