"""Residual streams are stored wider than what convolutions read of them, and lose less for it."""

from typing import Any

import numpy as np
import pytest

from qcc.errors import ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value, producers
from qcc.ir.layout import Widths
from qcc.ir.types import BATCH
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import NARROW_BITS, Capabilities
from qcc.verify.compare import sqnr_db
from qcc.verify.interp import evaluate
from qcc_passes.calibrate import Calibrate
from qcc_passes.dyadic import Dyadic
from qcc_passes.facts import BitPlan
from qcc_passes.quantize import Quantize
from qcc_passes.widen_residuals import WidenResiduals, residual_streams

WINDOW: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}


def network(blocks: int = 4) -> Graph:
    """A stem, blocks of two convolutions around which a stream runs, and an average of the stream."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("residual")

    def conv(name: str, x: Value, *residual: Value) -> Value:
        channels = x.type.shape[1]
        w = b.constant(rng.normal(0, (9 * channels) ** -0.5, (8, channels, 3, 3)).astype(np.float32), f"{name}.w")
        bias = b.constant(np.zeros(8, np.float32), f"{name}.b")
        return b.op("conv2d", [x, w, bias, *residual], name=name, lo=0.0, **WINDOW)

    stream = conv("stem", b.input("x", (BATCH, 3, 6, 6)))
    for i in range(blocks):
        stream = conv(f"out{i}", conv(f"in{i}", stream), stream)
    return b.graph([b.op("reduce_mean", [stream], name="mean", axes=(2, 3), keepdims=False)])


def samples() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(32, 3, 6, 6)).astype(np.float32)}


def run(*passes: Pass, plan: BitPlan | None = None) -> Graph:
    """The network after these passes."""
    capabilities = Capabilities(weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})
    ctx = PassContext(capabilities=capabilities)
    ctx.facts.put(CalibrationData(samples()))
    if plan is not None:
        ctx.facts.put(plan)
    return Pipeline(passes).run(network(), ctx)


def fidelity(quantized: Graph) -> float:
    """SQNR in dB."""
    return sqnr_db(evaluate(network(), samples())["mean"], evaluate(quantized, samples())["mean"])


def bits_of(graph: Graph, name: str) -> int:
    quant = producers(graph)[name].result.type.quant
    assert quant is not None
    return quant.bits


def test_streams_are_what_additions_read() -> None:
    assert [v.name for v in residual_streams(network(2))] == ["stem", "out0"]


@pytest.mark.parametrize(("narrow", "wide"), [(4, 8), (8, 16), (4, 16)])
def test_streams_are_wide_and_their_copies_narrow(narrow: int, wide: int) -> None:
    quantize = Quantize(activation_bits=narrow)
    plain = run(Calibrate(), quantize)
    graph = run(Calibrate(), WidenResiduals(bits=wide), quantize)
    assert bits_of(plain, "out1") == narrow
    assert bits_of(graph, "out1") == wide
    assert bits_of(graph, "out1.narrow") == bits_of(graph, "in1") == narrow
    by_name = producers(graph)
    assert [v.name for v in by_name["out1"].operands[::3]] == ["in1", "out0"]
    assert by_name["in1"].operands[0].name == "out0.narrow"
    assert fidelity(graph) > fidelity(plain)


def test_copies_take_the_planned_bits() -> None:
    plan = BitPlan({}, {"out0": 5, "in1": 6})
    graph = run(Calibrate(), WidenResiduals(bits=7), Quantize(activation_bits=4), plan=plan)
    assert [bits_of(graph, n) for n in ("out0", "out0.narrow", "in1", "out1", "out1.narrow")] == [7, 5, 6, 7, 4]


def test_precision_groups_stay() -> None:
    widths = Widths(0, ((2, 4), (2, 8)))
    ctx = PassContext()
    ctx.facts.put(CalibrationData(samples()))
    ctx.facts.put(BitPlan({"out0": 8}, {}, {"out0": widths}))
    Pipeline((Calibrate(), WidenResiduals())).run(network(), ctx)
    assert ctx.facts.get(BitPlan).widths == {"out0": widths}


def test_integers_follow_the_quantized_graph() -> None:
    passes = (Calibrate(), WidenResiduals(), Quantize(activation_bits=4, wide_outputs=False))
    quantized, integer = run(*passes), run(*passes, Dyadic())
    x = np.random.default_rng(2).normal(size=(8, 3, 6, 6)).astype(np.float32)
    grid, result = integer.inputs[0].type.quant, integer.outputs[0].type.quant
    assert grid is not None
    assert result is not None
    codes = evaluate(integer, {"x": grid.quantize(x)})["mean"]
    real = evaluate(quantized, {"x": x})["mean"]
    assert np.abs(codes.astype(int) - result.quantize(real)).max() <= 1


def test_the_target_must_have_the_bits() -> None:
    ctx = PassContext()
    with pytest.raises(ConfigError, match="no 16-bit activations; set bits to 8"):
        WidenResiduals(bits=16).run(network(), ctx)
