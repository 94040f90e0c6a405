"""The reference executor: real operations, data movement, grids, batches, bad input."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.expr import FUNCTIONS
from qcc.ir.graph import Graph, Op, Stage, Value, op
from qcc.ir.types import BATCH, Dyadic, Quant, TensorType
from qcc.verify import interp
from qcc.verify.interp import RULES, evaluate, evaluate_op, snap
from qcc.verify.ort import OrtModel

Array = NDArray[Any]
Attrs = dict[str, Any]

CONV: Attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}
POOL: Attrs = {"kernel": (2, 3), "strides": (2, 1), "pads": (1, 0, 0, 1), "dilations": (1, 1)}
RESIZE: Attrs = {
    "h0": (0, 1, 3),
    "h1": (1, 2, 3),
    "hf": (0.25, 0.5, 0.0),
    "w0": (0, 4),
    "w1": (1, 4),
    "wf": (0.75, 1.0),
}

X4 = (BATCH, 4, 6, 5)
REAL_CASES: list[tuple[str, Sequence[tuple[int, ...]], Attrs]] = [
    ("conv2d", [X4, (6, 4, 3, 3), (6,)], {**CONV, "pads": (1, 0, 2, 1), "lo": 0.0}),
    ("conv2d", [X4, (6, 2, 2, 3), (6,)], {**CONV, "groups": 2, "strides": (2, 1), "hi": 1.0}),
    ("conv2d", [X4, (8, 1, 3, 2), (8,)], {**CONV, "groups": 4, "dilations": (2, 1), "lo": -1.0, "hi": 1.0}),
    ("conv2d", [X4, (5, 4, 1, 1), (5,)], {**CONV, "strides": (2, 2)}),
    ("conv2d", [X4, (3, 4, 1, 1), (3,), (BATCH, 3, 6, 5)], {**CONV, "lo": 0.0}),
    ("conv_transpose2d", [X4, (4, 3, 3, 2), (3,)], {**CONV, "strides": (2, 3), "output_padding": (1, 0)}),
    (
        "conv_transpose2d",
        [X4, (4, 2, 3, 3), (4,)],
        {**CONV, "groups": 2, "pads": (1, 0, 2, 1), "output_padding": (0, 0)},
    ),
    (
        "conv_transpose2d",
        [X4, (4, 1, 2, 2), (4,)],
        {**CONV, "groups": 4, "dilations": (2, 1), "output_padding": (0, 0)},
    ),
    ("dense", [(BATCH, 7), (3, 7), (3,)], {"lo": 0.0}),
    ("dense", [(BATCH, 2, 7), (3, 7), (3,), (BATCH, 2, 3)], {}),
    ("matmul", [(BATCH, 2, 3, 4), (BATCH, 2, 4, 5)], {}),
    ("add", [X4, (4, 1, 1)], {"hi": 0.5}),
    ("sub", [X4, X4], {}),
    ("mul", [X4, (BATCH, 4, 1, 1)], {}),
    ("div", [X4, X4], {}),
    ("clip", [X4], {"lo": -0.5, "hi": 0.5}),
    ("clip", [X4], {}),
    ("map", [X4, (4, 1, 1)], {"fn": "where(less(x, 0.0), mul(x, p0), x)"}),
    ("avg_pool2d", [X4], {**POOL, "ceil_pads": (0, 0), "count_include_pad": False}),
    ("avg_pool2d", [X4], {**POOL, "ceil_pads": (1, 1), "count_include_pad": True, "lo": 0.0}),
    ("avg_pool2d", [X4], {**POOL, "pads": (2, 3, 2, 3), "ceil_pads": (0, 0), "count_include_pad": True}),
    ("avg_pool2d", [X4], {**POOL, "pads": (2, 0, 0, 0), "ceil_pads": (1, 0), "count_include_pad": False}),
    ("reduce_mean", [X4], {"axes": (2, 3), "keepdims": True}),
    ("reduce_sum", [X4], {"axes": (1,), "keepdims": False, "lo": 0.0}),
    ("reduce_max", [X4], {"axes": (1, 3), "keepdims": False}),
    ("resize_linear", [X4], RESIZE),
    ("softmax", [X4], {"axis": 1}),
    ("batch_norm", [X4, (4,), (4,), (4,), (4,)], {"epsilon": 1e-3}),
    ("max_pool2d", [X4], POOL),
    ("max_pool2d", [X4], {**POOL, "dilations": (2, 1), "pads": (1, 1, 1, 1)}),
    ("concat", [X4, (BATCH, 2, 6, 5)], {"axis": 1}),
    ("slice", [X4], {"axis": 2, "start": 1, "stop": 6, "step": 2}),
    ("pad", [X4], {"pads": (0, 1, 0, 2, 0, 0, 1, 0), "values": (1.5,)}),
    ("pad", [X4], {"pads": (0, 0, 0, 2, 0, 0, 1, 0), "values": (1.5, -2.0, 0.0, 1.0)}),
    ("reshape", [X4], {"shape": (BATCH, 24, 5)}),
    ("transpose", [X4], {"perm": (0, 3, 1, 2)}),
    ("gather", [X4], {"axis": 1, "indices": (3, 3, 0)}),
    ("dilate2d", [X4], {"factors": (2, 3)}),
    ("argmax", [X4], {"axis": 1, "keepdims": False}),
    ("argmax", [X4], {"axis": 3, "keepdims": True}),
]


def single(kind: str, shapes: Sequence[tuple[int, ...]], attrs: Attrs) -> Graph:
    """One operation; operands with a batch are inputs, the others constants."""
    rng = np.random.default_rng(5)
    b = GraphBuilder("single")
    operands = []
    for i, shape in enumerate(shapes):
        batched = shape[0] == BATCH
        array = rng.uniform(0.2, 1.5, [abs(d) for d in shape]).astype(np.float32)
        operands.append(b.input(f"x{i}", shape) if batched else b.constant(array, f"k{i}"))
    return b.graph([b.op(kind, operands, name="y", **attrs)])


def random_inputs(graph: Graph, batch: int = 3, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        v.name: rng.normal(size=[batch if d == BATCH else d for d in v.type.shape]).astype(np.float32)
        for v in graph.inputs
    }


@pytest.mark.parametrize(("kind", "shapes", "attrs"), REAL_CASES, ids=[c[0] for c in REAL_CASES])
def test_real_operations_agree_with_onnxruntime(kind: str, shapes: Sequence[tuple[int, ...]], attrs: Attrs) -> None:
    graph = single(kind, shapes, attrs)
    inputs = random_inputs(graph)
    got = evaluate(graph, inputs)["y"]
    wanted = OrtModel(export_onnx(graph), threads=1).run(inputs)["y"]
    assert got.shape == wanted.shape == (3, *graph.outputs[0].type.shape[1:])
    assert got.dtype == wanted.dtype == graph.outputs[0].type.numpy
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_every_real_operation_is_compared() -> None:
    from qcc.ir.opset import OPSET

    claimed = {kind for kind, spec in OPSET.items() if Stage.FLOAT in spec.stages} - {"constant"}
    assert claimed == {kind for kind, _, _ in REAL_CASES}
    assert set(OPSET) == set(RULES)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_map_functions_agree_with_onnxruntime(name: str) -> None:
    """Within the function's domain; the second and third argument are constants."""
    arity, _ = FUNCTIONS[name]
    graph = single("map", [(BATCH, 50)], {"fn": f"{name}({', '.join(['x', '0.5', '2.0'][:arity])})"})
    low, high = (1.1, 3.0) if name == "acosh" else (0.05, 0.95)
    x = np.random.default_rng(0).uniform(low, high, (4, 50)).astype(np.float32)
    if name in ("floor", "ceil", "round", "sign", "abs", "neg", "tanh", "erf", "sigmoid", "softplus", "min", "max"):
        x = (x - np.float32(0.5)) * 6
    wanted = OrtModel(export_onnx(graph), threads=1).run({"x0": x})["y"]
    np.testing.assert_allclose(evaluate(graph, {"x0": x})["y"], wanted, rtol=2e-5, atol=2e-6)


def test_a_map_without_its_variable_fills_the_tensor() -> None:
    graph = single("map", [(BATCH, 3, 2), (3, 1)], {"fn": "add(p0, 1.0)"})
    inputs = random_inputs(graph)
    got = evaluate(graph, inputs)["y"]
    assert got.shape == (3, 3, 2)
    np.testing.assert_array_equal(got, OrtModel(export_onnx(graph)).run(inputs)["y"])


def quantized_chain() -> Graph:
    """X (u8 grid) → conv, weights on a per-channel i8 grid → y on an i32 grid."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("q", Stage.QUANTIZED)
    x = b.input("x", (BATCH, 2, 4, 4), quant=Quant(8, False, (Dyadic(1, 4),), 7))
    per_channel = Quant(8, True, tuple(Dyadic(i + 3, 9) for i in range(3)), axis=0)
    w = b.constant(rng.normal(size=(3, 2, 3, 3)).astype(np.float32) / 3, "w", per_channel)
    bias = b.constant(rng.normal(size=3).astype(np.float32), "b")
    h = b.op("conv2d", [x, w, bias], name="h", quant=Quant(8, False, (Dyadic(3, 5),)), lo=0.0, **CONV)
    flat = b.op("reshape", [h], name="flat", quant=h.type.quant, shape=(BATCH, 12))
    mean = b.op("reduce_mean", [flat], name="y", quant=Quant(32, True, (Dyadic(1, 12),)), axes=(1,), keepdims=True)
    return b.graph([mean])


def test_quantized_values_lie_on_their_grids() -> None:
    graph = quantized_chain()
    x = np.random.default_rng(1).normal(scale=4, size=(5, 2, 4, 4)).astype(np.float32)
    got = evaluate(graph, {"x": x}, keep=["x", "w", "h", "flat"])
    values = {v.name: v for v in (*graph.inputs, *(o.result for o in graph.ops))}
    for name, array in got.items():
        quant = values[name].type.quant
        assert quant is not None
        np.testing.assert_array_equal(array, quant.dequantize(quant.quantize(array)), name)
    quant = graph.inputs[0].type.quant
    assert quant is not None
    np.testing.assert_array_equal(got["x"], quant.dequantize(quant.quantize(x)))
    plain = evaluate_op(graph.ops[2], [got["x"], got["w"], graph.ops[1].array])
    np.testing.assert_array_equal(plain, got["h"])


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_snapping_is_quantize_and_dequantize(bits: int) -> None:
    quant = Quant(bits, True, (Dyadic.of(0.0173),), 0 if bits == 32 else 3)
    x = np.random.default_rng(0).normal(scale=5, size=(70000,)).astype(np.float32)
    x[:3] = (1e9, -1e9, 0.0173 * 2.5)
    np.testing.assert_array_equal(snap(quant, x), quant.dequantize(quant.quantize(x)))


def test_batches_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = quantized_chain()
    x = np.random.default_rng(1).normal(scale=4, size=(7, 2, 4, 4)).astype(np.float32)
    whole = evaluate(graph, {"x": x}, keep=["w", "h"])
    conv = evaluate_op(graph.ops[2], [x, whole["w"], graph.ops[1].array])
    monkeypatch.setattr(interp, "_WORKING_SET", 4096)
    parts = evaluate(graph, {"x": x}, keep=["w", "h"])
    assert parts.keys() == whole.keys() == {"y", "w", "h"}
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)
    np.testing.assert_array_equal(evaluate_op(graph.ops[2], [x, whole["w"], graph.ops[1].array]), conv)


def test_an_empty_batch_gives_empty_outputs() -> None:
    got = evaluate(quantized_chain(), {"x": np.zeros((0, 2, 4, 4), np.float32)})
    assert got["y"].shape == (0, 1)


def test_outputs_may_be_inputs_and_constants() -> None:
    b = GraphBuilder("g")
    x, k = b.input("x", (2, 3)), b.constant(np.ones((2,), np.float32), "k")
    got = evaluate(b.graph([x, k]), {"x": np.zeros((2, 3), np.float32)})
    assert {name: a.shape for name, a in got.items()} == {"x": (2, 3), "k": (2,)}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no array for the input 'x0'"),
        ({"x0": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "has no input 'z'; its inputs: x0, x1"),
        ({"x0": np.zeros((1, 4), np.float64), "x1": np.zeros((1, 4), np.float32)}, "%x0 takes float32, got float64"),
        (
            {"x0": np.zeros((1, 5), np.float32), "x1": np.zeros((1, 4), np.float32)},
            r"takes shape \[N, 4\], got \[1, 5\]",
        ),
        ({"x0": np.zeros(4, np.float32), "x1": np.zeros((1, 4), np.float32)}, r"takes shape \[N, 4\], got \[4\]"),
        ({"x0": np.zeros((1, 4), np.float32), "x1": np.zeros((2, 4), np.float32)}, "batches 1 and 2"),
    ],
)
def test_wrong_inputs_are_named(inputs: dict[str, Array], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        evaluate(single("add", [(BATCH, 4), (BATCH, 4)], {}), inputs)


def test_unknown_names_and_operations_are_named() -> None:
    graph = single("clip", [(BATCH, 4)], {})
    with pytest.raises(VerifyError, match="no value %z"):
        evaluate(graph, {"x0": np.zeros((1, 4), np.float32)}, keep=["z"])
    strange = replace(graph.ops[0], kind="fft")
    with pytest.raises(VerifyError, match="knows no operation 'fft'"):
        evaluate_op(strange, [np.zeros((1, 4), np.float32)])
    with pytest.raises(VerifyError, match="takes float32"):
        evaluate_op(graph.ops[0], [np.zeros((1, 4), np.uint8)])


def test_movement_of_codes_uses_the_zero_point() -> None:
    quant = Quant(8, True, (Dyadic(1, 0),), -5)
    type_ = TensorType((1, 1, 2, 1), "i8", quant)
    x = Value("x", type_)
    dilated = op("dilate2d", [x], [x.typed(shape=(1, 1, 3, 1))], factors=(2, 1))
    codes = np.array([1, 2], np.int8).reshape(type_.shape)
    assert evaluate_op(dilated, [codes]).reshape(-1).tolist() == [1, -5, 2]
    nothing: Op = op(
        "max_pool2d", [x], [x.typed(shape=(1, 1, 4, 1))],
        kernel=(1, 1), strides=(1, 1), pads=(1, 0, 1, 0), dilations=(1, 1),
    )  # fmt: skip
    assert evaluate_op(nothing, [codes]).reshape(-1).tolist() == [-128, 1, 2, -128]
