"""Every bad model is one clear error, and nothing large is computed before it is raised."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcc.errors import ModelError, UnsupportedError
from qcc.frontend.load import load_model

BuildModel = Callable[..., ModelProto]
WriteModel = Callable[..., Path]

node = helper.make_node
RELU = [node("Relu", ["x"], ["y"])]


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_missing(tmp_path: Path) -> None:
    refuse(tmp_path / "none.onnx", "none.onnx: no such file")


def test_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "not a file")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    refuse(tmp_path / "m.onnx", "the file is empty")


def test_unreadable_name(tmp_path: Path) -> None:
    refuse(tmp_path / "a\0b.onnx", "no such file")
    refuse(tmp_path / ("a" * 300 + ".onnx"), "no such file|cannot be read")


@pytest.mark.parametrize("content", [b"\xff\xfe not a model", b"\x08\x08", b"{}", b"\0" * 64])
def test_not_a_model(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    refuse(tmp_path / "m.onnx", "not an ONNX model, or damaged")


def test_truncated(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 50)}, {"w": np.ones(50, np.float32)})
    path.write_bytes(path.read_bytes()[:-30])
    refuse(path, "damaged")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 8}, "opset 8 is not supported; export the model with one of 9 to 26"),
        ({"opset": 27}, "opset 27 is not supported"),
        ({"ir": 14}, "IR version 14 is not supported"),
        ({"ir": 2}, "IR version 2 is not supported"),
        ({"domains": {"ai.onnx": 13}}, "must import the default ONNX opset once"),
        ({"outputs": ()}, "no graph with outputs"),
        ({"outputs": ("z",)}, "graph output 'z' is defined nowhere"),
        ({"outputs": ("y", "y")}, "two graph outputs are called 'y'"),
    ],
)
def test_versions_and_outputs(options: dict[str, Any], message: str, write_model: WriteModel) -> None:
    refuse(write_model(RELU, {"x": ("N", 4)}, **options), message)


def test_cyclic(write_model: WriteModel) -> None:
    nodes = [node("Add", ["x", "c"], ["a"], name="first"), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["c"])]
    refuse(
        write_model(nodes, {"x": ("N", 4)}, outputs=("c",)),
        "cyclic: Add 'first' reads Neg giving 'c' reads Relu giving 'b' reads Add 'first'",
    )


def test_a_node_that_reads_itself(write_model: WriteModel) -> None:
    refuse(write_model([node("Add", ["x", "y"], ["y"])], {"x": ("N", 4)}), "cyclic: Add giving 'y' reads Add")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Relu", ["nowhere"], ["y"], name="r")], "Relu 'r': its input 'nowhere' is defined nowhere"),
        ([node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])], "Neg giving 'y': its output 'y' is defined twice"),
        ([node("Relu", ["x"], ["x"])], "its output 'x' is defined twice"),
        ([node("Conv", ["x", ""], ["y"], name="c")], "Conv 'c': input 1 is missing"),
        ([node("Conv", ["x"], ["y"])], "Conv giving 'y': has 1 inputs"),
        ([node("Relu", ["x", "x"], ["y"])], "has 2 inputs"),
        ([node("Relu", [""], ["y"])], "input 0 is missing"),
        ([node("Relu", ["x"], ["y"], slope=1.0)], "opset 17 knows no attribute 'slope'"),
        ([node("Gelu", ["x"], ["y"])], "opset 17 has no such operation"),
        ([node("Upsample", ["x", "x"], ["y"])], "opset 17 has this operation no more"),
        ([node("Transpose", ["x"], ["y"], perm=1)], "attribute 'perm' must be a list of integers"),
        ([node("Transpose", ["x"], ["y"], perm=[0, 0, 1])], "is no permutation"),
        ([node("LeakyRelu", ["x"], ["y"], alpha=1)], "attribute 'alpha' must be a number"),
        ([node("Flatten", ["x"], ["y"], axis=7)], "axis 7 is out of range"),
        ([node("Softmax", ["x"], ["y"], axis=3)], "axis 3 is out of range for rank 3"),
        ([node("MaxPool", ["x"], ["y"])], "attribute 'kernel_shape' is missing"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[0])], "do not fit"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[2], pads=[2, 2])], "a window would hold nothing"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[90])], "empty result"),
        ([node("MaxPool", ["x"], ["y"], kernel_shape=[2], auto_pad="SAME")], "unknown auto_pad 'SAME'"),
        ([node("Conv", ["x", "w"], ["y"])], "channels do not fit 1 groups"),
        ([node("Conv", ["x", "w"], ["y"], group=0)], "channels do not fit 0 groups"),
        ([node("Conv", ["x", "w"], ["y"], strides=[0])], "strides"),
        ([node("Conv", ["x", "w"], ["y"], kernel_shape=[5])], "contradicts weights"),
        ([node("MatMul", ["x", "w"], ["y"])], "malformed|matmul takes"),
        ([node("Add", ["x", "odd"], ["y"])], "do not broadcast"),
        ([node("Reshape", ["x", "seven"], ["y"])], "fixed batch size|cannot take"),
        ([node("Concat", ["x", "x"], ["y"], axis=-4)], "axis -4 is out of range"),
        ([node("DepthToSpace", ["x"], ["y"], blocksize=2)], "takes"),
    ],
)
def test_malformed_nodes(nodes: Sequence[NodeProto], message: str, write_model: WriteModel) -> None:
    weights = {"w": np.ones((4, 3, 2), np.float32), "seven": ints(7), "odd": np.ones(7, np.float32)}
    refuse(write_model(nodes, {"x": ("N", 2, 8)}, weights), message)


def test_attribute_references_of_functions(write_model: WriteModel) -> None:
    broken = node("LeakyRelu", ["x"], ["y"])
    broken.attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="outer"))
    refuse(write_model([broken], {"x": ("N", 4)}), "attribute 'alpha' must be a number")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(value: float, write_model: WriteModel) -> None:
    w = np.ones((4, 3), np.float32)
    w[2, 1] = value
    path = write_model([node("MatMul", ["x", "w"], ["y"], name="fc")], {"x": ("N", 4)}, {"w": w})
    refuse(path, r"MatMul 'fc': tensor 'w' holds 1 NaN or infinite values, the first at \[1, 2\]")


def test_doubles_that_overflow(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 2)}, {"w": np.array([1.0, 1e300])})
    refuse(path, "tensor 'w' holds 1 NaN or infinite")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TensorProto.STRING, "input 'x': element type string is not supported"),
        (TensorProto.COMPLEX64, "element type complex64 is not supported"),
        (TensorProto.UINT64, "element type uint64 is not supported"),
        (0, "element type undefined is not supported"),
    ],
)
def test_input_types(kind: int, message: str, write_model: WriteModel) -> None:
    refuse(write_model(RELU, {"x": ("N", 4)}, types={"x": kind}), message)


def test_inputs_that_are_no_tensors(build_model: BuildModel, tmp_path: Path) -> None:
    model = build_model(RELU, {})
    info = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [1])
    model.graph.input.append(info)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refuse(tmp_path / "m.onnx", "input 'x' is not a dense tensor")


def test_weights_of_unsupported_types(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 1)}, {"w": np.array(["a"], object)})
    refuse(path, "tensor 'w': element type string is not supported")


def test_integer_weights_in_float_arithmetic(write_model: WriteModel) -> None:
    refuse(write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 2)}, {"w": ints(1, 2)}), "computes on int64")


def test_sizes_of_zero(write_model: WriteModel) -> None:
    refuse(write_model(RELU, {"x": ("N", 0)}), "input 'x' has size 0 at axis 1")


def test_stored_sizes_that_do_not_fit(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 2)}, {"w": np.ones(2, np.float32)})
    for dims, message in (([3], "holds 8 bytes, its shape needs 12"), ([-2], "bad shape"), ([2**40], "too many")):
        model = ModelProto.FromString(path.read_bytes())
        model.graph.initializer[0].dims[:] = dims
        changed = path.with_name("changed.onnx")
        changed.write_bytes(model.SerializeToString())
        refuse(changed, f"tensor 'w': .*{message}")


def test_sparse_initializers(build_model: BuildModel, tmp_path: Path) -> None:
    model = build_model(RELU, {"x": ("N", 4)})
    values, indices = helper.make_tensor("w", 1, [1], [1.0]), helper.make_tensor("i", 7, [1], [2])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    refuse(tmp_path / "m.onnx", "initializer 'w' is sparse; store it as a dense tensor")


def test_names_given_twice(write_model: WriteModel) -> None:
    path = write_model(RELU, {"x": ("N", 4)}, {"w": np.ones(2, np.float32)})
    model = ModelProto.FromString(path.read_bytes())
    model.graph.initializer.append(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    refuse(path, "two initializers share one name")
    model.graph.ClearField("initializer")
    model.graph.input.append(model.graph.input[0])
    path.write_bytes(model.SerializeToString())
    refuse(path, "two graph inputs share one name")


HUGE = numpy_helper.from_array(np.array([1], np.float32))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("ConstantOfShape", ["huge"], ["c"], value=HUGE), node("Add", ["x", "c"], ["y"])], "is too large"),
        ([node("ConstantOfShape", ["wide"], ["c"]), node("Add", ["x", "c"], ["y"])], "1099511627776 elements"),
        ([node("Range", ["zero", "far", "step"], ["c"]), node("Add", ["x", "c"], ["y"])], "elements is computed here"),
        ([node("Expand", ["one", "wide"], ["c"]), node("Add", ["x", "c"], ["y"])], "elements is computed here"),
        ([node("Tile", ["one", "huge"], ["c"]), node("Add", ["x", "c"], ["y"])], "is too large"),
        ([node("Pad", ["one", "around"], ["c"]), node("Add", ["x", "c"], ["y"])], "elements is computed here"),
        ([node("Pad", ["x", "beside"], ["y"])], "is too large"),
        ([node("Tile", ["x", "rows"], ["y"])], "too long"),
        ([node("Pad", ["x", "beside"], ["y"], mode="edge")], "too long"),
        ([node("Resize", ["x", "", "scales"], ["y"])], "a result of size"),
    ],
)
def test_hostile_sizes_allocate_nothing(nodes: Sequence[NodeProto], message: str, write_model: WriteModel) -> None:
    weights = {
        "huge": ints(2**40),
        "wide": ints(2**20, 2**20),
        "zero": np.array(0, np.int64),
        "far": np.array(2**40, np.int64),
        "step": np.array(1, np.int64),
        "one": np.ones(1, np.float32),
        "around": ints(2**38, 2**38),
        "beside": ints(0, 2**38, 0, 2**38),
        "rows": ints(1, 2**40),
        "scales": np.array([1, 1e12], np.float32),
    }
    path = write_model(nodes, {"x": ("N", 4)}, weights)
    tracemalloc.start()
    started = time.perf_counter()
    refuse(path, message)
    assert time.perf_counter() - started < 5
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_many_medium_sizes_exhaust_the_budget(write_model: WriteModel) -> None:
    """No single constant is too large, but together they are more than any real model computes."""
    nodes = [node("Expand", ["one", "wide"], ["c0"])]
    nodes += [node("Add", [f"c{i}", "one"], [f"c{i + 1}"]) for i in range(50)]
    nodes += [node("Add", ["x", "c50"], ["y"])]
    weights = {"one": np.ones(1, np.float32), "wide": ints(2**22)}
    refuse(write_model(nodes, {"x": ("N", 1)}, weights), "more data than any real model")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../outside.bin", "must be a file below the model's folder"),
        ("/etc/passwd", "must be a file below the model's folder"),
        ("a/../../outside.bin", "must be a file below the model's folder"),
        ("..\\outside.bin", "must be a file below the model's folder"),
        ("", "must be a file below the model's folder"),
        ("link.bin", "is a link that leaves the model's folder"),
        ("linked/outside.bin", "is a link that leaves the model's folder"),
        ("absent.bin", "no file 'absent.bin' beside the model"),
        ("folder", "no file 'folder' beside the model"),
        ("nul\0.bin", "bad location"),
        ("short.bin", "ends before offset 0 [+] 16 bytes"),
    ],
)
def test_external_data_stays_inside_the_folder(location: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    (folder / "short.bin").write_bytes(bytes(15))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "linked").symlink_to(tmp_path)
    refuse(_with_external(folder / "m.onnx", {"location": location}), f"tensor 'w': external data: .*{message}")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "-4"}, "at offset -4"),
        ({"offset": "four"}, "must be integers"),
        ({"length": "12"}, "16 bytes are needed, the model says 12"),
        ({"offset": str(2**62)}, "cannot read|ends before"),
        ({"offset": str(2**70)}, "cannot read 'w.bin'"),
    ],
)
def test_external_data_of_wrong_extent(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    refuse(_with_external(tmp_path / "m.onnx", {"location": "w.bin", **entries}), message)


def _with_external(path: Path, entries: dict[str, str]) -> Path:
    info = helper.make_tensor_value_info
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph([], "g", [info("x", 1, ["N", 4])], [info("w", 1, None)], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def test_every_unsupported_node_is_listed(write_model: WriteModel) -> None:
    nodes = [
        node("LRN", ["x"], ["a"], name="norm", size=3),
        node("Relu", ["x"], ["r"]),
        node("Frobnicate", ["r"], ["b"], name="frob"),
        node("FusedConv", ["r"], ["c"], name="fused", domain="com.microsoft"),
        node("TopK", ["a", "k"], ["d", "e"], name="top"),
        node("Conv", ["r", "r"], ["f"], name="dynamic"),
        node("Sum", ["a", "b", "c", "d", "f"], ["y"]),
    ]
    path = write_model(nodes, {"x": ("N", 3, 4, 4)}, {"k": ints(1)}, domains={"com.microsoft": 1})
    with pytest.raises(UnsupportedError, match=r"^5 unsupported nodes: LRN 'norm'") as caught:
        load_model(path)
    heads = [reason.split(":")[0] for reason in caught.value.reasons]
    assert heads == ["LRN 'norm'", "Frobnicate 'frob'", "FusedConv 'fused'", "TopK 'top'", "Conv 'dynamic'"]
    assert all("; " in reason for reason in caught.value.reasons), "each says what to do"
    assert "domain 'com.microsoft'" in caught.value.reasons[2]


def test_nodes_behind_a_rejected_one_are_checked_where_the_model_declares_types(
    build_model: BuildModel, tmp_path: Path
) -> None:
    nodes = [node("LRN", ["x"], ["a"], size=3), node("Conv", ["a", "a"], ["y"], name="behind")]
    model = build_model(nodes, {"x": ("N", 3, 4, 4)})
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", 3, 4, 4]))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UnsupportedError, match=r"2 unsupported nodes.*Conv 'behind': its input 'weight' is computed"):
        load_model(tmp_path / "m.onnx")


def test_control_flow(build_model: BuildModel, write_model: WriteModel) -> None:
    branch = build_model([node("Neg", ["x"], ["o"])], {}, outputs=("o",)).graph
    choose = node("If", ["c"], ["y"], name="choose", then_branch=branch, else_branch=branch)
    path = write_model([choose], {"x": ("N", 4)}, {"c": np.array(True)})
    with pytest.raises(UnsupportedError, match="If 'choose': control flow is not supported"):
        load_model(path)


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (node("MaxPool", ["x"], ["y", "z"], kernel_shape=[2, 2]), "its output 'z' is read"),
        (node("Resize", ["x", "", "s"], ["y"], mode="cubic"), "mode 'cubic' is not supported"),
        (node("MaxPool", ["v"], ["y"], kernel_shape=[2, 2, 2]), "3 spatial axes are not supported"),
        (node("Cast", ["x"], ["y"], to=TensorProto.INT32), "it turns float32 into int32"),
        (node("Pow", ["x", "x"], ["y"]), "base and exponent are both computed"),
        (node("Dropout", ["x", "", "train"], ["y"]), "training mode"),
        (node("Less", ["x", "x"], ["y"]), "its inputs are computed at run time"),
        (node("DequantizeLinear", ["x", "s"], ["y"]), "the model is already quantized; give qcc the float model"),
        (node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2], auto_pad="SAME_UPPER"), "ambiguous"),
    ],
)
def test_unsupported_forms(proto: NodeProto, message: str, write_model: WriteModel) -> None:
    weights = {"s": np.array([1, 1, 2, 2], np.float32), "train": np.array(True)}
    inputs = {"x": ("N", 2, 4, 4), "v": ("N", 2, 4, 4, 4)}
    path = write_model([proto], inputs, weights, outputs=list(proto.output))
    with pytest.raises(UnsupportedError, match=message):
        load_model(path)


@pytest.mark.parametrize("model", ["minilm_l6_seq64", "silero_vad_16k"])
def test_real_models_beyond_the_scope(model: str, data_dir: Path) -> None:
    expected = {"minilm_l6_seq64": {"LayerNormalization": 13, "Gather": 1, "Cast": 1}, "silero_vad_16k": {"LSTM": 1}}
    with pytest.raises(UnsupportedError) as caught:
        load_model(data_dir / "models" / f"{model}.onnx")
    counts: dict[str, int] = {}
    for reason in caught.value.reasons:
        counts[reason.split()[0]] = counts.get(reason.split()[0], 0) + 1
    assert counts == expected[model]
