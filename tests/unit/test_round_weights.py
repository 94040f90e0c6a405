"""The round-weights pass: lower output error on data it did not fit, or nothing changes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op, Stage, constant, constants, producers, rewrite
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.ir.verify import verify
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.compare import sqnr_db
from qcc.verify.interp import evaluate, evaluate_op
from qcc_passes.quantize_weights import weight_quant
from qcc_passes.round_weights import RoundedWeights, RoundWeights
from qcc_passes.sweep import unquantized

Array = NDArray[Any]


def network(bits: int, groups: int = 1) -> Graph:
    """Conv - relu - dense on [N, 4, 6, 6], weights on ``bits``-wide grids."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("net", Stage.QUANTIZED)

    def weights(shape: tuple[int, ...], name: str) -> Any:
        array = (rng.normal(size=shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
        return b.constant(array, name, quant=weight_quant(array, bits, "channel", "max"))

    x = b.input("x", (BATCH, 4, 6, 6), quant=Quant(8, False, (Dyadic.of(4 / 255),)))
    y = b.op(
        "conv2d",
        [x, weights((8, 4 // groups, 3, 3), "w1"), b.constant(np.zeros(8, np.float32), "b1")],
        name="conv",
        quant=Quant(8, False, (Dyadic.of(0.02),)),
        strides=(1, 1),
        pads=(1, 1, 1, 1),
        dilations=(1, 1),
        groups=groups,
        lo=0.0,
    )
    y = b.op("reshape", [y], shape=(BATCH, 288), quant=y.type.quant)
    logits = [y, weights((5, 288), "w2"), b.constant(np.zeros(5, np.float32), "b2")]
    return b.graph([b.op("dense", logits, name="logits", quant=Quant(32, True, (Dyadic.of(1e-6),)))])


def inputs(samples: int, seed: int) -> dict[str, Array]:
    """Smooth positive images: neighbouring pixels correlate, as GPTQ needs."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 2, size=(samples, 4, 1, 1)) + rng.normal(size=(samples, 4, 6, 6)) * 0.3
    return {"x": np.clip(base, 0, 4).astype(np.float32)}


def rounded(graph: Graph, **options: Any) -> tuple[Graph, RoundedWeights]:
    ctx = PassContext()
    ctx.facts.put(CalibrationData(inputs(64, 1)))
    after = RoundWeights(**options).run(graph, ctx)
    verify(after)
    return after, ctx.facts.get(RoundedWeights)


def output_sqnr(graph: Graph) -> float:
    data = inputs(200, 2)
    env = dict(data)
    for o in graph.ops:
        plain = unquantized(o)
        env[o.result.name] = o.array if o.kind == "constant" else _run(plain, env)
    return sqnr_db(env["logits"], evaluate(graph, data)["logits"])


def weight_sqnr(graph: Graph) -> float:
    """That of the logits where weights alone lie on grids."""
    data = inputs(200, 2)
    exact, found = dict(data), dict(data)
    for o in graph.ops:
        if o.kind == "constant":
            quant = o.result.type.quant
            exact[o.result.name] = ORIGINAL.get(o.result.name, o.array)
            found[o.result.name] = o.array if quant is None else quant.dequantize(quant.quantize(o.array))
        else:
            exact[o.result.name], found[o.result.name] = (_run(unquantized(o), env) for env in (exact, found))
    return sqnr_db(exact["logits"], found["logits"])


ORIGINAL = constants(network(8))


def _run(o: Op, env: dict[str, Array]) -> Array:
    return evaluate_op(o, [env[v.name] for v in o.operands])


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bits", [2, 4])
def test_output_error_falls_on_unseen_data(bits: int, groups: int) -> None:
    before = network(bits, groups)
    after, report = rounded(before)
    assert [r.layer for r in report.layers] == ["conv", "logits"]
    assert any(r.accepted for r in report.layers)
    assert output_sqnr(after) > output_sqnr(before) + 2


def test_adaround_is_an_option() -> None:
    before = network(4)
    after, report = rounded(before, method="adaround")
    assert any(r.accepted for r in report.layers)
    assert output_sqnr(after) > output_sqnr(before) + 1
    assert not np.array_equal(constants(after)["w1"], constants(rounded(before)[0])["w1"])


def test_accepted_weights_lie_on_their_grid() -> None:
    after, report = rounded(network(3))
    weights = producers(after)
    for name, layer in (("w1", "conv"), ("w2", "logits")):
        assert next(r for r in report.layers if r.layer == layer).accepted
        quant = weights[name].result.type.quant
        assert quant is not None
        assert quant.bits == 3
        assert np.array_equal(quant.dequantize(quant.quantize(weights[name].array)), weights[name].array)


def test_biases_take_back_the_means() -> None:
    """What rounding does to the mean of a channel is none of the weights' business."""
    before = network(2)
    after, report = rounded(before)
    assert next(r for r in report.layers if r.layer == "conv").accepted

    def means(weights: Array, bias: Array) -> Array:
        """By channel, of the convolution before its clamp."""
        o = next(o for o in before.ops if o.result.name == "conv")
        free = unquantized(replace(o, attrs={k: a for k, a in o.attrs.items() if k not in ("lo", "hi")}))
        found: Array = _run(free, {**inputs(400, 1), "w1": weights, "b1": bias}).mean(axis=(0, 2, 3))
        return found

    old, new = constants(before), constants(after)
    exact = means(old["w1"], old["b1"])
    alone, corrected = (np.abs(means(new["w1"], bias) - exact).max() for bias in (old["b1"], new["b1"]))
    assert corrected < alone / 4


def test_eight_bits_gain_too() -> None:
    before = network(8)
    after, report = rounded(before)
    assert [r.accepted for r in report.layers] == [True, True]
    assert weight_sqnr(after) > weight_sqnr(before) + 3


def test_wide_weights_are_left_alone_on_demand() -> None:
    before = network(8)
    after, report = rounded(before, below=8)
    assert report.layers == ()
    assert after is before


def test_too_few_samples_leave_the_weights_as_they_are() -> None:
    ctx = PassContext()
    ctx.facts.put(CalibrationData(inputs(1, 1)))
    before = network(4)
    assert RoundWeights().run(before, ctx) is before


def test_outliers_beyond_a_grid_do_not_outweigh_the_rest() -> None:
    """A few places that the input's grid clips hold nearly all of the squared error."""
    data = inputs(64, 1)["x"]
    places = np.random.default_rng(4).uniform(size=(64, 1, 6, 6)) < 0.03
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"x": np.where(places, 100 * data, data)}))
    before = network(4)
    assert output_sqnr(RoundWeights().run(before, ctx)) > output_sqnr(before) + 2


def test_channels_are_accepted_one_by_one() -> None:
    """Where one channel's weights lie on the grid already, and nothing can be gained there."""
    graph = network(3)
    quant = weight_quant(ORIGINAL["w1"], 3, "channel", "max")
    mixed = ORIGINAL["w1"].copy()
    mixed[:3] = quant.dequantize(quant.quantize(mixed))[:3]
    graph = rewrite(
        graph, lambda o: [constant("w1", mixed, quant=o.result.type.quant)] if o.result.name == "w1" else None
    )
    after = constants(rounded(graph)[0])["w1"]
    assert np.array_equal(after[:3], mixed[:3])
    assert not np.array_equal(after[3:], mixed[3:])


def test_a_rounding_that_does_not_help_is_refused() -> None:
    """Weights that lie on the grid already have no error to lower."""
    before = network(4)
    arrays = {}
    for o in before.ops:
        if o.kind == "constant" and o.result.type.quant is not None:
            quant = o.result.type.quant
            arrays[o.result.name] = quant.dequantize(quant.quantize(o.array))
    exact = rewrite(
        before,
        lambda o: (
            [constant(o.result.name, arrays[o.result.name], quant=o.result.type.quant)]
            if o.result.name in arrays
            else None
        ),
    )
    after, report = rounded(exact, compensate_below=2)
    assert not any(r.accepted for r in report.layers)
    assert all(np.array_equal(a, constants(exact)[k]) for k, a in constants(after).items())
