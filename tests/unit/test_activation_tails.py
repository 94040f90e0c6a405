"""Channels of an activation that reach far keep 8 bits, the others fewer: less error, the same bits everywhere."""

from typing import Any

import numpy as np
import pytest

from qcc.errors import ConfigError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value, producers
from qcc.ir.layout import Widths
from qcc.ir.text import render
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import NARROW_BITS, Capabilities
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel
from qcc_passes.acceptance import Court, better
from qcc_passes.activation_tails import ActivationTails, ActivationTailsFound
from qcc_passes.calibrate import Calibrate
from qcc_passes.dyadic import Dyadic
from qcc_passes.facts import BitPlan
from qcc_passes.pipelines import default
from qcc_passes.quantize import Quantize
from qcc_passes.scoring import corrected_by
from qcc_targets.c.target import CTarget
from qcc_targets.cpu.target import CpuTarget

FAR = (3, 11)
"""Channels that reach twelve times as far as the others."""


def network(reach: float) -> Graph:
    """Two convolutions with a Relu between, and an average; what reads the far channels is small in proportion."""
    b, rng = GraphBuilder("tails"), np.random.default_rng(3)
    sizes = np.ones(16)
    sizes[list(FAR)] = reach

    def conv(x: Value, w: Any, name: str) -> Value:
        window: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (0,) * 4, "groups": 1}
        operands = [x, b.constant(w.astype(np.float32), "w"), b.constant(np.zeros(len(w), np.float32), "b")]
        return b.op("conv2d", operands, name=name, lo=0.0, **window)

    signs = rng.choice([-1.0, 1.0], (16, 3, 1, 1)) * rng.uniform(0.8, 1.2, (16, 3, 1, 1))
    y = conv(b.input("x", (BATCH, 3, 6, 6)), signs * sizes.reshape(-1, 1, 1, 1), "y")
    z = conv(y, rng.choice([-1.0, 1.0], (24, 16, 1, 1)) / sizes.reshape(1, -1, 1, 1) ** 0.5, "z")
    return b.graph([b.op("reduce_mean", [z], name="mean", axes=(2, 3), keepdims=False)])


def samples(seed: int, count: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 6, 6)).astype(np.float32)}


def compiled(graph: Graph, *passes: Any) -> tuple[Graph, PassContext]:
    ctx = PassContext(capabilities=Capabilities(weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16}))
    ctx.facts.put(CalibrationData(samples(1, 64)))
    return Pipeline((Calibrate(), Quantize(activation_bits=4), *passes)).run(graph, ctx), ctx


def test_far_channels_become_the_tail() -> None:
    graph = network(12.0)
    plain, _ = compiled(graph)
    quantized, ctx = compiled(graph, ActivationTails())
    (tail,) = ctx.facts.get(ActivationTailsFound).tails
    assert (tail.value, tail.channels, tail.tail, tail.bits, tail.accepted) == ("y", 16, 2, 4, True)
    assert tail.ratio < 0.5
    grid = producers(quantized)["y"].result.type.quant
    assert grid is not None
    assert isinstance(grid.layout, Widths)
    assert np.flatnonzero(grid.layout.per_index() == 8).tolist() == list(FAR)
    x = samples(2, 64)
    exact = evaluate(graph, x)["mean"]
    before, after = (np.square(evaluate(g, x)["mean"] - exact).mean() for g in (plain, quantized))
    assert after < before / 2


@pytest.mark.parametrize(("reach", "pays"), [(1.3, False), (2.0, True)])
def test_tails_that_lower_their_own_error_stay_only_where_the_compiled_network_gains(reach: float, pays: bool) -> None:
    plain, ctx = compiled(network(reach))
    court = Court.of(plain, ctx, corrected_by(), 0.4)
    found, ctx = compiled(network(reach), ActivationTails())
    (tail,) = ctx.facts.get(ActivationTailsFound).tails
    assert tail.ratio < 1
    assert tail.accepted == pays
    assert (render(found) == render(plain)) != pays
    if pays:
        before, after = (court.score(g, BitPlan({}, {})) for g in (plain, found))
        assert better(after, before)


def test_all_executions_agree_on_tails() -> None:
    integer, _ = compiled(network(12.0), ActivationTails(), Dyadic())
    (x,) = integer.inputs
    assert x.type.quant is not None
    codes = {"x": x.type.quant.quantize(samples(3, 5)["x"])}
    wanted = evaluate(integer, codes, keep=["y"])
    limits = np.where(np.isin(np.arange(16), FAR), 255, 15)
    highest = wanted["y"].max(axis=(0, 2, 3))
    assert (highest <= limits).all()
    assert (highest[list(FAR)] > 100).all()
    assert np.array_equal(OrtModel(export_onnx(integer)).run(codes)["mean"], wanted["mean"])
    for target in (CpuTarget(), CTarget()):
        with trial_session(integer, target) as session:
            assert np.array_equal(session.run(codes, raw=True)["mean"], wanted["mean"])


def test_a_target_without_8_bits_is_refused() -> None:
    ctx = PassContext(capabilities=Capabilities(activation_bits=frozenset({4})))
    ctx.facts.put(CalibrationData(samples(1, 64)))
    with pytest.raises(ConfigError, match="no 8-bit activations"):
        Pipeline((Calibrate(), Quantize(activation_bits=4, weight_bits=8), ActivationTails())).run(network(2.0), ctx)


def test_wide_activations_have_no_tails() -> None:
    ctx = PassContext()
    ctx.facts.put(CalibrationData(samples(1, 64)))
    Pipeline((Calibrate(), Quantize(), ActivationTails())).run(network(12.0), ctx)
    assert ctx.facts.get(ActivationTailsFound).tails == ()


def test_the_default_pipeline_takes_it() -> None:
    names = [p.name for p in default({"activation-tails": {"share": 0.25}})]
    assert names.index("activation-tails") == names.index("quantize") + 1
