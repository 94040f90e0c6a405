"""The verification report: metrics, differences, and the blame of layers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import ConfigError, MismatchError, ModelError, VerifyError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify import compare
from qcc.verify.interp import evaluate
from qcc.verify.layers import LayerTable, without_grids
from qcc.verify.ort import OrtModel
from qcc.verify.report import quantize_inputs, verify_model

Array = NDArray[Any]
STEP = Dyadic(1, 6)
INPUT = Quant(8, True, (STEP,), 0)
HIDDEN = Quant(8, False, (Dyadic(1, 5),), 0)
LOGITS = Quant(32, True, (Dyadic(1, 14),))


def real_graph(stage: Stage = Stage.QUANTIZED) -> Graph:
    """X → fine (dense, relu) → coarse (dense, a grid of 16 levels) → logits (dense)."""
    b = GraphBuilder("real", stage)

    def grid(quant: Quant) -> Quant | None:
        return quant if stage is Stage.QUANTIZED else None

    x = b.input("x", (BATCH, 6), quant=grid(INPUT))
    h = x
    for name, quant in (("fine", HIDDEN), ("coarse", COARSE), ("logits", LOGITS)):
        w = b.constant(weights(name).astype(np.float32) / 64, f"{name}.w", grid(Quant(8, True, (STEP,))))
        bias = b.constant(np.zeros(6, np.float32), f"{name}.b")
        attrs: dict[str, Any] = {} if name == "logits" else {"lo": 0.0}
        h = b.op("dense", [h, w, bias], name=name, quant=grid(quant), **attrs)
    return b.graph([h])


COARSE = Quant(4, False, (Dyadic(1, 2),), 0)


def weights(name: str) -> Array:
    seed = ["fine", "coarse", "logits"].index(name)
    return np.random.default_rng(seed).integers(-60, 61, (6, 6)).astype(np.int8)


def integer_graph() -> Graph:
    """The same, in integers: every scale is a power of two."""
    b = GraphBuilder("integer", Stage.INTEGER)
    h = b.input("x", (BATCH, 6), "i8", INPUT)
    before = INPUT
    for name, quant in (("fine", HIDDEN), ("coarse", COARSE), ("logits", LOGITS)):
        exponent = 20 - (before.scale[0].shift + 6 - quant.scale[0].shift)
        ends = [b.constant(np.array([1 << exponent], np.int32)), b.constant(np.array([1 << 19], np.int64))]
        w = b.constant(weights(name), f"{name}.w", Quant(8, True, (STEP,)))
        clamp = {"shift": 20, "qmin": quant.qmin, "qmax": quant.qmax}
        dtype = "i32" if quant.bits == 32 else "u8"
        h = b.op("idense", [h, w, *ends], name=name, dtype=dtype, quant=quant, **clamp)
        before = quant
    return b.graph([h])


def data(samples: int = 40) -> dict[str, Array]:
    return {"x": np.random.default_rng(5).normal(0, 0.7, (samples, 6)).astype(np.float32)}


def test_a_faithful_model_is_exact_and_close() -> None:
    graph, inputs = integer_graph(), data()
    fp32 = OrtModel(export_onnx(real_graph(Stage.FLOAT)))
    labels = fp32.run(inputs)["logits"].argmax(axis=1)
    engines = {
        "onnxruntime": OrtModel(export_onnx(graph)).run,
        "reference": lambda codes: evaluate(graph, codes),
    }
    seen: list[tuple[int, int]] = []
    report = verify_model(
        fp32.run, graph, inputs, engines=engines, labels=labels, real=real_graph(), batch=16,
        progress=lambda what, done, total: seen.append((done, total)),
    )  # fmt: skip
    assert report.samples == 40
    assert [(e.name, e.elements, e.differing) for e in report.engines] == [
        ("onnxruntime", 240, 0),
        ("reference", 240, 0),
    ]
    report.check()
    (output,) = report.outputs
    assert output.name == "logits"
    assert 8 < output.sqnr_db < 40
    assert output.cosine > 0.9
    assert output.agreement is not None
    assert output.agreement == output.top1_integer
    assert output.top1_fp32 == 1.0
    assert output.kl is not None
    assert output.kl > 0
    assert seen == [(16, 40), (32, 40), (40, 40)]
    codes = quantize_inputs(graph, inputs)
    whole = LOGITS.dequantize(evaluate(graph, codes)["logits"])
    assert output.sqnr_db == pytest.approx(compare.sqnr_db(fp32.run(inputs)["logits"], whole))


def test_the_coarse_layer_is_blamed() -> None:
    fp32 = OrtModel(export_onnx(real_graph(Stage.FLOAT)))
    report = verify_model(fp32.run, integer_graph(), data(), real=real_graph())
    assert [r.value for r in report.layers] == ["x", "fine", "coarse", "logits"]
    assert [r.op for r in report.layers] == ["input", "dense", "dense", "dense"]
    by_name = {r.value: r for r in report.layers}
    assert report.blamed(1) == (by_name["coarse"],)
    assert by_name["x"].local_db is None
    fine, coarse, logits = (by_name[n].local_db for n in ("fine", "coarse", "logits"))
    assert fine is not None
    assert coarse is not None
    assert logits is not None
    assert coarse < fine < logits
    worst = by_name["coarse"]
    assert worst.loss_db == pytest.approx(by_name["fine"].sqnr_db - worst.sqnr_db)


def test_layers_are_measured_on_some_samples_only() -> None:
    fp32 = OrtModel(export_onnx(real_graph(Stage.FLOAT)))
    some = verify_model(fp32.run, integer_graph(), data(), real=real_graph(), layer_samples=8, batch=8)
    table = LayerTable(integer_graph(), real_graph())
    part = {"x": data()["x"][:8]}
    table.add(part, quantize_inputs(integer_graph(), part))
    assert some.layers == table.rows()
    assert verify_model(fp32.run, integer_graph(), data()).layers == ()


def test_differing_engines_are_counted_and_named() -> None:
    graph = integer_graph()

    def off(codes: Mapping[str, Array]) -> Mapping[str, Array]:
        got = evaluate(graph, codes)["logits"].copy()
        got[:, 2] += 1
        return {"logits": got}

    fp32 = OrtModel(export_onnx(real_graph(Stage.FLOAT)))
    engines = {"off": off, "mute": lambda codes: {}, "fine": lambda codes: evaluate(graph, codes)}
    report = verify_model(fp32.run, graph, data(), engines=engines)
    assert {e.name: e.differing for e in report.engines} == {"off": 40, "mute": 240, "fine": 0}
    with pytest.raises(MismatchError, match="off in 40 of 240 elements, mute in 240 of 240"):
        report.check()


def test_codes_of_another_border_leave_the_reals_to_fp32() -> None:
    """Camera bytes: fp32 takes normalized reals, the integer graph takes codes given apart."""
    graph, inputs = integer_graph(), data()
    codes = quantize_inputs(graph, inputs)
    fp32 = OrtModel(export_onnx(real_graph(Stage.FLOAT)))
    twice = {"x": inputs["x"] * 2}

    def halved(reals: Mapping[str, Array]) -> Mapping[str, Array]:
        return fp32.run({"x": (reals["x"] / 2).astype(np.float32)})

    direct = verify_model(fp32.run, graph, inputs, real=real_graph())
    apart = verify_model(halved, graph, twice, codes=codes, real=real_graph())
    assert apart.outputs == direct.outputs
    assert math.isinf(apart.layers[0].sqnr_db), "the codes are what the real graph is fed"


def test_fixed_batches_run_one_by_one() -> None:
    b = GraphBuilder("fixed", Stage.INTEGER)
    x = b.input("x", (1, 6), "i8", INPUT)
    y = b.op("argmax", [x], name="y", axis=1, keepdims=False)
    graph = b.graph([y])
    report = verify_model(lambda reals: {"y": reals["x"].argmax(axis=1)}, graph, data(5), batch=4)
    assert report.samples == 5
    (output,) = report.outputs
    assert output.agreement is not None
    assert output.agreement > 0.7


def test_json_is_standard() -> None:
    fp32 = OrtModel(export_onnx(real_graph(Stage.FLOAT)))
    graph = integer_graph()
    report = verify_model(fp32.run, graph, data(), codes=quantize_inputs(graph, data()), real=real_graph())
    plain = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert plain["layers"][0] == {"value": "x", "op": "input", "sqnr_db": None, "local_db": None, "loss_db": None}
    assert plain["samples"] == 40
    assert plain["outputs"][0]["sqnr_db"] == report.outputs[0].sqnr_db


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {}}, "no array for the input 'x'"),
        ({"inputs": {"x": np.zeros((4, 6), np.int32)}}, "has dtype int32; it takes int8 codes or float32"),
        ({"inputs": {"x": np.zeros((0, 6), np.float32)}}, "0 samples"),
        ({"labels": np.zeros(3, np.int64)}, "3 labels do not fit 40 samples"),
        ({"fp32": lambda reals: {"other": np.zeros(1)}}, "the fp32 model has no output 'logits'; outputs: other"),
    ],
)
def test_data_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"fp32": lambda reals: {}, "graph": integer_graph(), "inputs": data(), **change}
    with pytest.raises(ConfigError, match=message):
        verify_model(**given)


def test_stages_are_checked() -> None:
    with pytest.raises(VerifyError, match="takes stage integer"):
        verify_model(lambda reals: {}, real_graph(), data())
    with pytest.raises(VerifyError, match="compares a graph at stage integer with a real one"):
        LayerTable(integer_graph(), integer_graph())


def test_graphs_without_grids_compute_in_reals() -> None:
    inputs = data()
    got = evaluate(without_grids(real_graph()), inputs)["logits"]
    np.testing.assert_array_equal(got, evaluate(real_graph(Stage.FLOAT), inputs)["logits"])


# Metrics.


def test_signal_to_noise() -> None:
    r = np.array([3.0, 4.0])
    assert compare.sqnr_db(r, r * 1.1) == pytest.approx(20.0)
    assert compare.sqnr_db(r, r) == math.inf
    assert compare.sqnr_db(r * 0, r) == -math.inf
    with pytest.raises(VerifyError, match=r"shapes \[2\] and \[3\]"):
        compare.sqnr_db(r, np.zeros(3))


def test_cosine() -> None:
    a, b = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    assert compare.cosine(a, b) == pytest.approx(math.sqrt(0.5))
    assert compare.cosine(a, -a) == pytest.approx(-1.0)
    assert (compare.cosine(a * 0, a * 0), compare.cosine(a, a * 0)) == (1.0, 0.0)


def test_agreement_and_top1() -> None:
    r = np.array([[1, 2], [2, 1], [0, 5], [5, 0]])
    t = np.array([[1, 3], [1, 2], [0, 1], [2, 1]])
    assert compare.agreement(r, t) == 0.75
    assert compare.top1(r, np.array([1, 0, 0, 0])) == 0.75
    with pytest.raises(VerifyError, match="labels"):
        compare.top1(r, np.array([1, 0]))


def test_divergence() -> None:
    p = np.log(np.array([[0.5, 0.5]]))
    q = np.log(np.array([[0.25, 0.75]]))
    assert compare.kl_divergence(p, p + 7) == pytest.approx(0.0, abs=1e-12)
    assert compare.kl_divergence(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))


def test_differing_elements() -> None:
    a = np.arange(4)
    assert compare.differing(a, a) == 0
    assert compare.differing(a, a[::-1]) == 4
    assert compare.differing(a, a.astype(np.int32)) == 4
    assert compare.differing(a, a[:2]) == 4


# onnxruntime sessions.


def test_sessions_check_what_they_are_given(tmp_path: Path) -> None:
    model = OrtModel(export_onnx(integer_graph()))
    assert (model.inputs, model.outputs) == ({"x": ("N", 6)}, ["logits"])
    good = np.zeros((2, 6), np.int8)
    assert model.run({"x": good})["logits"].shape == (2, 6)
    cases: list[tuple[dict[str, Array], str]] = [
        ({}, "no array for the input 'x'"),
        ({"x": good, "z": good}, "has no input 'z'; inputs: x"),
        ({"x": good.astype(np.float32)}, "'x' takes int8, got float32"),
        ({"x": good[:, :5]}, r"'x' takes shape \['N', 6\], got \[2, 5\]"),
    ]
    for inputs, message in cases:
        with pytest.raises(VerifyError, match=message):
            model.run(inputs)
    with pytest.raises(VerifyError, match="no tensor input 'z'"):
        model.input_dtype("z")
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"bad\.onnx: onnxruntime refuses it"):
        OrtModel(path)


def test_batched_runs_are_joined() -> None:
    model = OrtModel(export_onnx(integer_graph()))
    codes = quantize_inputs(integer_graph(), data(7))
    np.testing.assert_array_equal(model.run_batched(codes, 3)["logits"], model.run(codes)["logits"])
