"""Graphs as exporters really write them: shape arithmetic, layouts, constants, odd declarations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcc.errors import ModelError, UnsupportedError
from qcc.frontend.load import Model, load_model
from qcc.ir.types import BATCH

BuildModel = Callable[..., ModelProto]
WriteModel = Callable[..., Path]
Agrees = Callable[..., Model]

node = helper.make_node


def ints(*values: int) -> NDArray[Any]:
    return np.array(values, np.int64)


def constant(name: str, array: NDArray[Any]) -> Any:
    return node("Constant", [], [name], value=numpy_helper.from_array(array))


def kinds(model: Model) -> list[str]:
    return [o.kind for o in model.graph.ops if o.kind != "constant"]


def test_torch_view_with_the_batch_from_the_shape(
    write_model: WriteModel, agrees: Agrees, rng: np.random.Generator
) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        constant("zero", np.array(0, np.int64)),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "front"], ["n1"]),
        constant("rest", ints(-1)),
        node("Concat", ["n1", "rest"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    path = write_model(nodes, {"x": ("N", 3, 4)}, {"front": ints(0)})
    model = agrees(path, {"x": rng.normal(size=(2, 3, 4)).astype(np.float32)})
    assert kinds(model) == ["reshape"]


def test_sizes_computed_from_the_whole_shape(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    """N*C*H*W // (C*H*W) is N again, by way of casts, products and a quotient."""
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Cast", ["s"], ["s32"], to=TensorProto.INT32),
        node("Cast", ["s32"], ["s64"], to=TensorProto.INT64),
        node("ReduceProd", ["s64"], ["all"], keepdims=0),
        node("Div", ["all", "sample"], ["n"]),
        node("Unsqueeze", ["n", "front"], ["n1"]),
        node("Concat", ["n1", "pair"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"sample": np.array(24, np.int64), "front": ints(0), "pair": ints(4, 6)}
    path = write_model(nodes, {"x": ("N", 2, 3, 4)}, weights)
    agrees(path, {"x": rng.normal(size=(5, 2, 3, 4)).astype(np.float32)})


def test_torch_upsample_by_computed_sizes(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Slice", ["s", "i0", "i2", "i0"], ["nc"]),
        node("Slice", ["s", "i2", "i4", "i0"], ["hw"]),
        node("Cast", ["hw"], ["hwf"], to=TensorProto.FLOAT),
        node("Mul", ["hwf", "factor"], ["grown"]),
        node("Floor", ["grown"], ["floored"]),
        node("Cast", ["floored"], ["hw2"], to=TensorProto.INT64),
        node("Concat", ["nc", "hw2"], ["sizes"], axis=0),
        node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", coordinate_transformation_mode="align_corners"),
    ]
    weights = {"i0": ints(0), "i2": ints(2), "i4": ints(4), "factor": np.array(1.7, np.float32)}
    path = write_model(nodes, {"x": ("N", 2, 5, 6)}, weights, opset=13)
    model = agrees(path, {"x": rng.normal(size=(2, 2, 5, 6)).astype(np.float32)})
    assert kinds(model) == ["resize_linear"]


def test_torch_pad_of_opset_11(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    """Torch reverses its padding list with ConstantOfShape, Concat, Reshape, Slice and Transpose."""
    nodes = [
        constant("given", ints(1, 2, 0, 3)),
        node("ConstantOfShape", ["four"], ["zeros"], value=numpy_helper.from_array(ints(0))),
        node("Concat", ["given", "zeros"], ["full"], axis=0),
        node("Reshape", ["full", "pairs"], ["table"]),
        node("Slice", ["table", "last", "lowest", "first", "back"], ["reversed"]),
        node("Transpose", ["reversed"], ["turned"], perm=[1, 0]),
        node("Reshape", ["turned", "flat"], ["listed"]),
        node("Cast", ["listed"], ["pads"], to=TensorProto.INT64),
        node("Pad", ["x", "pads"], ["y"], mode="reflect"),
    ]
    weights = {
        "four": ints(4),
        "pairs": ints(-1, 2),
        "last": ints(-1),
        "lowest": ints(-(2**63) + 1),
        "first": ints(0),
        "back": ints(-1),
        "flat": ints(-1),
    }
    path = write_model(nodes, {"x": ("N", 2, 5, 6)}, weights, opset=11)
    model = agrees(path, {"x": rng.normal(size=(2, 2, 5, 6)).astype(np.float32)})
    assert kinds(model) == ["gather", "gather"]


def test_torch_expand_with_where_on_the_shape(
    write_model: WriteModel, agrees: Agrees, rng: np.random.Generator
) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("ConstantOfShape", ["three"], ["ones"], value=numpy_helper.from_array(ints(1))),
        node("Mul", ["ones", "minus"], ["negative"]),
        node("Equal", ["wanted", "negative"], ["open"]),
        node("Where", ["open", "ones", "wanted"], ["target"]),
        node("Equal", ["s", "negative"], ["never"]),
        node("Where", ["never", "ones", "s"], ["own"]),
        node("Expand", ["x", "target"], ["wide"]),
        node("Expand", ["wide", "own"], ["y"]),
    ]
    weights = {"three": ints(3), "minus": np.array(-1, np.int64), "wanted": ints(-1, 4, -1)}
    path = write_model(nodes, {"x": ("N", 1, 3)}, weights)
    model = agrees(path, {"x": rng.normal(size=(2, 1, 3)).astype(np.float32)})
    assert kinds(model) == ["gather"]


def test_channels_last_through_transposes(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    nodes = [
        node("Transpose", ["x"], ["nchw"], perm=[0, 3, 1, 2]),
        node("Conv", ["nchw", "w"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"], epsilon=1e-3),
        node("Relu", ["b"], ["r"]),
        node("Transpose", ["r"], ["nhwc"], perm=[0, 2, 3, 1]),
        node("Shape", ["nhwc"], ["s"]),
        node("Slice", ["s", "i0", "i1"], ["n"]),
        node("Squeeze", ["n", "i0"], ["n0"]),
        node("Unsqueeze", ["n0", "i0"], ["n1"]),
        node("Cast", ["n1"], ["n32"], to=TensorProto.INT32),
        node("Concat", ["n32", "rest"], ["t32"], axis=0),
        node("Cast", ["t32"], ["target"], to=TensorProto.INT64),
        node("Reshape", ["nhwc", "target"], ["flat"]),
        node("MatMul", ["flat", "fc"], ["m"]),
        node("Add", ["m", "bias"], ["a"]),
        node("Softmax", ["a"], ["y"]),
    ]
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        **{name: rng.uniform(0.5, 1, 4).astype(np.float32) for name in ("scale", "shift", "mean", "var")},
        "i0": ints(0),
        "i1": ints(1),
        "rest": np.array([64], np.int32),
        "fc": rng.normal(size=(64, 5)).astype(np.float32),
        "bias": rng.normal(size=5).astype(np.float32),
    }
    path = write_model(nodes, {"x": ("N", 8, 8, 3)}, weights)
    model = agrees(path, {"x": rng.normal(size=(3, 8, 8, 3)).astype(np.float32)})
    assert kinds(model) == [
        *("transpose", "conv2d", "batch_norm", "clip", "transpose"),
        *("reshape", "dense", "add", "softmax"),
    ]


def test_minus_infinity_before_a_max_pooling_is_its_padding(
    write_model: WriteModel, agrees: Agrees, rng: np.random.Generator
) -> None:
    nodes = [
        node("Pad", ["x", "pads", "low"], ["p"]),
        node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    ]
    weights = {"pads": ints(0, 0, 0, 1, 0, 0, 1, 1), "low": np.array(-np.inf, np.float32)}
    path = write_model(nodes, {"x": ("N", 2, 6, 6)}, weights)
    model = agrees(path, {"x": rng.normal(size=(2, 2, 6, 6)).astype(np.float32)})
    assert kinds(model) == ["max_pool2d"]


def test_minus_infinity_elsewhere_is_refused(write_model: WriteModel) -> None:
    weights = {"pads": ints(0, 0, 0, 1), "low": np.array(-np.inf, np.float32)}
    path = write_model([node("Pad", ["x", "pads", "low"], ["y"])], {"x": ("N", 6)}, weights)
    with pytest.raises(ModelError, match="pads with infinity"):
        load_model(path)


def test_every_form_of_constant(write_model: WriteModel, agrees: Agrees) -> None:
    nodes = [
        constant("c", np.array([1, 2], np.float32)),
        node("Constant", [], ["f"], value_float=0.5),
        node("Constant", [], ["fs"], value_floats=[0.25, 4.0]),
        node("Constant", [], ["i"], value_int=1),
        node("Constant", [], ["is"], value_ints=[0, -1]),
        node("Add", ["x", "c"], ["a"]),
        node("Mul", ["a", "f"], ["b"]),
        node("Sub", ["b", "fs"], ["d"]),
        node("Reshape", ["d", "is"], ["e"]),
        node("Gather", ["e", "i"], ["y"], axis=1),
    ]
    agrees(write_model(nodes, {"x": ("N", 2)}), {"x": np.ones((3, 2), np.float32)})


def test_initializers_that_are_also_inputs(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    w = rng.normal(size=(4, 3)).astype(np.float32)
    path = write_model([node("MatMul", ["x", "w"], ["y"])], {"x": ("N", 4), "w": (4, 3)}, {"w": w}, opset=9, ir=3)
    model = agrees(path, {"x": rng.normal(size=(2, 4)).astype(np.float32)})
    assert [v.name for v in model.graph.inputs] == ["x"]


def test_nodes_out_of_order_and_dead_nodes(write_model: WriteModel) -> None:
    nodes = [node("Neg", ["a"], ["y"]), node("LSTM", ["a", "b", "c"], ["dead"]), node("Relu", ["x"], ["a"])]
    weights = {"b": np.zeros(1, np.float32), "c": np.zeros(1, np.float32)}
    assert kinds(load_model(write_model(nodes, {"x": ("N", 4)}, weights))) == ["clip", "map"]


def test_unused_extra_domains(write_model: WriteModel, agrees: Agrees) -> None:
    domains = {"ai.onnx.ml": 2, "com.microsoft": 1, "com.microsoft.nchwc": 1}
    path = write_model([node("Relu", ["x"], ["y"])], {"x": ("N", 4)}, domains=domains)
    agrees(path, {"x": np.ones((1, 4), np.float32)})


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_float_types_become_float32(
    kind: int, write_model: WriteModel, agrees: Agrees, rng: np.random.Generator
) -> None:
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float64
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["y"])]
    weights = {"w": rng.normal(size=(4, 3)).astype(dtype)}
    path = write_model(nodes, {"x": ("N", 4)}, weights, types={"x": kind, "y": kind})
    model = agrees(path, {"x": rng.normal(size=(2, 4)).astype(dtype)}, rtol=5e-3, atol=5e-3)
    word = np.dtype(dtype).name.replace("float64", "double")
    assert model.notes == (
        f"input 'x' is {word} in the model and float32 here",
        f"tensors converted to float32: 1 {word}",
    )
    assert all(v.type.dtype == "f32" for o in model.graph.ops for v in o.results)


def test_bfloat16_weights(build_model: BuildModel, tmp_path: Path) -> None:
    model = build_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 2)})
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.5, -3.0]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    graph = load_model(tmp_path / "m.onnx").graph
    np.testing.assert_array_equal(graph.ops[0].array, np.array([1.5, -3.0], np.float32))


def test_camera_bytes_cast_to_float(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        node("Div", ["f", "scale"], ["y"]),
    ]
    weights = {"scale": np.array(255, np.float32)}
    path = write_model(nodes, {"x": ("N", 4, 5, 3)}, weights, types={"x": TensorProto.UINT8})
    model = agrees(path, {"x": rng.integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)})
    assert model.notes == ("input 'x' is uint8 in the model and float32 here, with the same values",)


def test_arithmetic_on_bytes_is_refused(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "x"], ["y"])], {"x": ("N", 4)}, types={"x": 2, "y": 2})
    with pytest.raises(UnsupportedError, match="it computes on uint8; cast to float32"):
        load_model(path)


def test_argmax_cast_to_int32(write_model: WriteModel) -> None:
    nodes = [node("ArgMax", ["x"], ["a"], axis=1), node("Cast", ["a"], ["y"], to=TensorProto.INT32)]
    model = load_model(write_model(nodes, {"x": ("N", 4)}, types={"y": TensorProto.INT32}))
    assert model.graph.outputs[0].type.dtype == "i64"


def test_quantized_weights_are_unpacked(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    nodes = [node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1), node("MatMul", ["x", "w"], ["y"])]
    weights = {
        "q": rng.integers(-128, 128, (4, 3)).astype(np.int8),
        "s": np.array([0.1, 0.2, 0.3], np.float32),
        "z": np.array([0, 3, -5], np.int8),
    }
    path = write_model(nodes, {"x": ("N", 4)}, weights)
    agrees(path, {"x": rng.normal(size=(2, 4)).astype(np.float32)})


def test_weights_computed_from_weights(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    """Weight normalization, as exported: g * v / ||v||."""
    nodes = [
        node("Mul", ["v", "v"], ["v2"]),
        node("ReduceSum", ["v2", "axes"], ["total"], keepdims=1),
        node("Sqrt", ["total"], ["norm"]),
        node("Div", ["v", "norm"], ["unit"]),
        node("Mul", ["unit", "g"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
    ]
    weights = {
        "v": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "g": rng.normal(size=(4, 1, 1, 1)).astype(np.float32),
        "axes": ints(1, 2, 3),
    }
    path = write_model(nodes, {"x": ("N", 3, 5, 5)}, weights)
    model = agrees(path, {"x": rng.normal(size=(2, 3, 5, 5)).astype(np.float32)})
    assert kinds(model) == ["conv2d"]


def test_batch_norm_after_a_1d_convolution(write_model: WriteModel, agrees: Agrees, rng: np.random.Generator) -> None:
    nodes = [node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"])]
    weights = {name: rng.uniform(0.5, 1, 4).astype(np.float32) for name in "sbmv"}
    path = write_model(nodes, {"x": ("N", 3, 9)}, {"w": rng.normal(size=(4, 3, 3)).astype(np.float32), **weights})
    model = agrees(path, {"x": rng.normal(size=(2, 3, 9)).astype(np.float32)})
    assert model.graph.outputs[0].type.shape == (BATCH, 4, 7)
