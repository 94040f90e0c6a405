"""Inputs, outputs, names, dynamic dimensions, digests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcc.errors import ModelError
from qcc.frontend.load import Model, load_model
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import BATCH

WriteModel = Callable[..., Path]
Agrees = Callable[..., Model]

node = helper.make_node
RELU = [node("Relu", ["x"], ["y"])]


def shapes(model: Model) -> list[tuple[int, ...]]:
    return [v.type.shape for v in model.graph.inputs]


@pytest.mark.parametrize("leading", ["N", "batch_size", None, -1])
def test_a_leading_unknown_dimension_is_the_batch(leading: int | str | None, write_model: WriteModel) -> None:
    assert shapes(load_model(write_model(RELU, {"x": (leading, 4)}))) == [(BATCH, 4)]


def test_the_batch_can_be_fixed(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "z"], ["y"])], {"x": ("N", 2, 4), "z": (2, "M")})
    assert shapes(load_model(path, batch=3, shapes={"z": (-1, 4)})) == [(3, 2, 4), (2, 4)]


def test_one_symbol_is_one_size(write_model: WriteModel) -> None:
    """The batch of x is axis 1 of the state; H is given once for both inputs."""
    path = write_model([node("Relu", ["x"], ["y"])], {"x": ("N", "H"), "state": (2, "N", "H")})
    assert shapes(load_model(path, batch=3, shapes={"x": (-1, 5)})) == [(3, 5), (2, 3, 5)]


def test_two_leading_symbols_are_one_batch_and_that_is_noted(write_model: WriteModel) -> None:
    path = write_model([node("Add", ["x", "z"], ["y"])], {"x": ("a", 4), "z": ("b", 4)})
    assert load_model(path).notes == ("leading dimensions a, b are taken to be one batch",)


def test_an_unknown_dimension_names_the_input_and_the_option(write_model: WriteModel) -> None:
    path = write_model(RELU, {"x": ("N", 3, "height", 64)})
    message = r"input 'x': dimension 'height' at axis 2 is dynamic and has no size; give it, as --shape x=-1,3,64,64"
    with pytest.raises(ModelError, match=message):
        load_model(path)
    assert shapes(load_model(path, shapes={"x": (-1, 3, 32, 64)})) == [(BATCH, 3, 32, 64)]


def test_an_input_without_any_shape(write_model: WriteModel) -> None:
    path = write_model(RELU, {"x": None})
    with pytest.raises(ModelError, match="input 'x' has no declared shape"):
        load_model(path)
    assert shapes(load_model(path, shapes={"x": (-1, 7)})) == [(BATCH, 7)]


@pytest.mark.parametrize(
    ("batch", "given", "message"),
    [
        (None, {"z": (1, 4)}, "a shape is given for 'z', but the inputs are x"),
        (None, {"x": (1, 2, 3)}, "input 'x' has rank 2"),
        (None, {"x": (1, 5)}, "input 'x' has size 4 at axis 1 in the model, 5 is given"),
        (None, {"x": (0, 4)}, "size 0 in the given shape"),
        (0, {}, "batch size must be positive"),
    ],
)
def test_wrong_shapes_are_refused(
    batch: int | None, given: dict[str, tuple[int, ...]], message: str, write_model: WriteModel
) -> None:
    path = write_model(RELU, {"x": ("N", 4)})
    with pytest.raises(ModelError, match=message):
        load_model(path, batch=batch, shapes=given)


def test_a_fixed_batch_cannot_be_changed(write_model: WriteModel) -> None:
    with pytest.raises(ModelError, match="fixes its batch at 1, 4 is given"):
        load_model(write_model(RELU, {"x": (1, 4)}), batch=4)


def test_conflicting_sizes_of_one_symbol(write_model: WriteModel) -> None:
    path = write_model(RELU, {"x": ("N", "H"), "z": ("N", "H")})
    with pytest.raises(ModelError, match="dimension 'H' is given as 3 and as 4"):
        load_model(path, shapes={"x": (1, 3), "z": (1, 4)})


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([node("Reshape", ["x", "merged"], ["y"], name="r")], "mixes|moves the batch"),
        ([node("Reshape", ["x", "one"], ["y"], name="r")], "for one fixed batch size"),
        ([node("Transpose", ["x"], ["y"], perm=[1, 0, 2])], "moves the batch away from axis 0"),
        ([node("ReduceMean", ["x"], ["y"], axes=[0])], "reduces over the batch"),
        ([node("Concat", ["x", "x"], ["y"], axis=0)], "joins samples"),
        ([node("Unsqueeze", ["x", "front"], ["y"])], "moves the batch away"),
        ([node("Gather", ["x", "front"], ["y"])], "selects samples"),
        ([node("Split", ["x"], ["y", "z"], axis=0)], "splits the batch"),
        ([node("Flatten", ["x"], ["y"], axis=2)], "merges it with another axis"),
        ([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["y"])], "depends on the batch"),
    ],
)
def test_what_needs_a_fixed_batch_says_so(nodes: list[object], reason: str, write_model: WriteModel) -> None:
    weights = {"merged": [-1, 4], "one": [1, 2, 4], "front": [0]}
    arrays = {name: np.array(values, np.int64) for name, values in weights.items()}
    path = write_model(nodes, {"x": ("N", 2, 4)}, arrays)
    with pytest.raises(ModelError, match=f"({reason}).*fix the batch size"):
        load_model(path)
    load_model(path, batch=2 if "Split" in str(nodes) else 1)


def test_outputs_keep_their_names(write_model: WriteModel, agrees: Agrees) -> None:
    """Through Identity and Dropout, twice from one value, straight from an input, and as a constant."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Dropout", ["r"], ["d"]),
        node("Identity", ["d"], ["first"]),
        node("Identity", ["r"], ["second"]),
        node("Identity", ["x"], ["same"]),
        node("Identity", ["w"], ["fixed"]),
        node("Neg", ["first"], ["r.neg"]),
    ]
    outputs = ("first", "second", "same", "fixed", "r.neg", "r")
    path = write_model(nodes, {"x": ("N", 4)}, {"w": np.ones(3, np.float32)}, outputs)
    model = agrees(path, {"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)})
    assert tuple(v.name for v in model.graph.outputs) == outputs


def test_an_input_can_be_an_output(write_model: WriteModel) -> None:
    graph = load_model(write_model(RELU, {"x": ("N", 4)}, outputs=("y", "x"))).graph
    assert [v.name for v in graph.outputs] == ["y", "x"]


def test_constant_integer_outputs_are_int64(write_model: WriteModel) -> None:
    path = write_model(RELU, {"x": ("N", 4)}, {"k": np.array([3], np.int32)}, ("y", "k"), types={"k": 6})
    model = load_model(path)
    assert model.graph.outputs[1].type.dtype == "i64"
    assert model.notes == ("output 'k' is int32 in the model and int64 here",)


def test_names_that_the_text_form_cannot_hold(write_model: WriteModel) -> None:
    nodes = [
        node("Relu", ["in put"], ["a (1)"]),
        node("Neg", ["a (1)"], ["a__1_"]),
        node("Add", ["a (1)", "a__1_"], ["out,%1:0/q.r"]),
    ]
    graph = load_model(write_model(nodes, {"in put": ("N", 4)}, outputs=("out,%1:0/q.r",))).graph
    names = [v.name for v in (*graph.inputs, *(o.result for o in graph.ops))]
    assert names == ["in_put", "a__1_", "a__1__1", "out__1:0/q.r"]
    assert render(parse(render(graph), const_store(graph))) == render(graph)


def test_integer_inputs_are_carried_along(write_model: WriteModel) -> None:
    """Token ids may be declared, moved and returned; what computes on them is unsupported."""
    path = write_model([node("Transpose", ["x"], ["y"], perm=[0, 2, 1])], {"x": ("N", 2, 3)}, types={"x": 7, "y": 7})
    assert load_model(path).graph.outputs[0].type.dtype == "i64"


def test_the_digest_covers_external_data(tmp_path: Path, write_model: WriteModel) -> None:
    digests = []
    for value in (1.0, 2.0, 2.0):
        path = write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 4)}, {"w": np.ones(4, np.float32)})
        _externalize(path, "w.bin", np.full(4, value, np.float32).tobytes())
        model = load_model(path)
        np.testing.assert_array_equal(model.graph.ops[0].array, np.full(4, value))
        digests.append(model.digest)
    assert digests[0] != digests[1] == digests[2]


def test_external_data_in_a_subfolder_at_an_offset(write_model: WriteModel, agrees: Agrees) -> None:
    path = write_model([node("Add", ["x", "w"], ["y"])], {"x": ("N", 4)}, {"w": np.ones(4, np.float32)})
    (path.parent / "weights").mkdir()
    data = np.arange(8, dtype=np.float32)
    _externalize(path, "weights/w.bin", data.tobytes(), offset=8, length=16)
    agrees(path, {"x": np.zeros((1, 4), np.float32)})


def _externalize(path: Path, location: str, data: bytes, **entries: int) -> None:
    """Move the first initializer of the model at ``path`` into a file beside it."""
    from onnx import ModelProto

    model = ModelProto.FromString(path.read_bytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    (path.parent / location).write_bytes(data)


def test_tensors_in_typed_fields(tmp_path: Path, write_model: WriteModel) -> None:
    """Not raw_data, but float_data, int32_data, …: how helper.make_tensor and old exporters store."""
    from onnx import ModelProto

    stored = {
        "a": helper.make_tensor("a", TensorProto.FLOAT, [2], [1.5, 2.5]),
        "b": helper.make_tensor("b", TensorProto.DOUBLE, [2], [1.5, 2.5]),
        "c": helper.make_tensor("c", TensorProto.FLOAT16, [2], [1.5, 2.5]),
        "d": helper.make_tensor("d", TensorProto.INT64, [2], [2**40, -1]),
    }
    outputs = tuple(stored)
    path = write_model(RELU, {"x": ("N", 4)}, outputs=("y", *outputs), types={"d": TensorProto.INT64})
    model = ModelProto.FromString(path.read_bytes())
    model.graph.initializer.extend(stored.values())
    path.write_bytes(model.SerializeToString())
    arrays = {o.result.name: o.array for o in load_model(path).graph.ops if o.kind == "constant"}
    for name, tensor in stored.items():
        np.testing.assert_array_equal(arrays[name], numpy_helper.to_array(tensor))
