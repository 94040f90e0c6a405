"""Damaged and hostile models: whatever the bytes, only a QccError may escape, soon and in little memory."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from qcc.errors import QccError
from qcc.frontend.load import Model, load_model

BuildModel = Callable[..., ModelProto]
Agrees = Callable[..., Model]

EXTREME = (0, 1, -1, 2, 7, 255, 2**20, 2**27, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1, -5)
REALS = (0.0, 1e-30, 1e30, float("nan"), float("inf"), 2.5, -1.0, 2.0**24)
TEXTS = (b"", b"x", b"\xff", b"SAME_LOWER", b"linear", b"nearest", b"edge", b"half_pixel")
OTHER_OPS = (
    "LSTM",
    "Where",
    "Min",
    "MatMul",
    "Trilu",
    "OneHot",
    "EyeLike",
    "CumSum",
    "NonZero",
    "Mod",
    "Pow",
    "Upsample",
)


def ints(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.fixture
def crowded(build_model: BuildModel, rng: np.random.Generator) -> ModelProto:
    """A model with a node of nearly every family, in a few kilobytes."""
    node = helper.make_node
    one = numpy_helper.from_array(np.array([1], np.float32))
    nodes = [
        node("Conv", ["x", "w", "four"], ["c1"], name="conv", pads=[1, 1, 1, 1], strides=[1, 1]),
        node("BatchNormalization", ["c1", "four", "four", "four", "four"], ["bn"]),
        node("Relu", ["bn"], ["r"]),
        node("Conv", ["r", "w2"], ["c2"], group=4, auto_pad="SAME_UPPER", strides=[2, 2], kernel_shape=[3, 3]),
        node("Clip", ["c2", "zero"], ["cl"]),
        node("MaxPool", ["cl"], ["mp"], kernel_shape=[2, 2], strides=[1, 1], pads=[0, 0, 1, 1], ceil_mode=1),
        node("AveragePool", ["mp"], ["ap"], kernel_shape=[2, 2], pads=[1, 1, 0, 0], count_include_pad=1, ceil_mode=1),
        node("ConvTranspose", ["ap", "wt"], ["ct"], group=2, strides=[2, 2], output_padding=[0, 0]),
        node("Resize", ["ct", "", "double"], ["rs"], coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Resize", ["rs", "", "double"], ["rl"], mode="linear", coordinate_transformation_mode="half_pixel"),
        node("Pad", ["rl", "pads", "zero"], ["pd"]),
        node("Pad", ["pd", "pads"], ["pr"], mode="reflect"),
        node("Slice", ["pr", "starts", "ends", "axes", "steps"], ["sl"]),
        node("DepthToSpace", ["sl"], ["ds"], blocksize=2),
        node("SpaceToDepth", ["ds"], ["sd"], blocksize=2),
        node("Gather", ["sd", "picks"], ["ga"], axis=1),
        node("Split", ["ga"], ["s1", "s2"], axis=1),
        node("Concat", ["s1", "s2"], ["cc"], axis=1),
        node("Tile", ["cc", "repeats"], ["ti"]),
        node("ReduceMean", ["ti"], ["rm"], axes=[2, 3], keepdims=0),
        node("Shape", ["rm"], ["sh"]),
        node("Gather", ["sh", "first"], ["n"]),
        node("Concat", ["n", "two", "rest"], ["ns"], axis=0),
        node("Reshape", ["rm", "ns"], ["rr"]),
        node("Transpose", ["rr"], ["tr"], perm=[0, 2, 1]),
        node("Unsqueeze", ["tr", "axis"], ["un"]),
        node("Squeeze", ["un", "axis"], ["sq"]),
        node("Flatten", ["sq"], ["fl"]),
        node("Gemm", ["fl", "fc"], ["ge"], alpha=0.5, beta=1.0),
        node("LeakyRelu", ["ge"], ["le"], alpha=0.1),
        node("Softmax", ["le"], ["y"], axis=-1),
        node("ConstantOfShape", ["shape"], ["cos"], value=one),
        node("Range", ["from", "to", "by"], ["ra"]),
        node("Cast", ["ra"], ["raf"], to=TensorProto.FLOAT),
        node("Reshape", ["raf", "shape"], ["rar"]),
        node("Add", ["cos", "rar"], ["k"]),
        node("Tile", ["k", "repeat2"], ["kt"]),
        node("Expand", ["kt", "shape3"], ["ke"]),
        node("ReduceSum", ["ke"], ["total"], keepdims=0),
        node("ArgMax", ["le"], ["best"], axis=1),
    ]
    lists = {
        "pads": (0, 0, 1, 1, 0, 0, 1, 1),
        "starts": (0, 0),
        "ends": (4, 2**62),
        "axes": (2, 3),
        "steps": (1, 2),
        "picks": (0, 1, 1, 0),
        "repeats": (1, 1, 2, 1),
        "first": (0,),
        "two": (2,),
        "rest": (-1,),
        "axis": (1,),
        "shape": (2, 3),
        "repeat2": (2, 1),
        "shape3": (3, 4, 3),
    }
    weights = {
        **{name: ints(*values) for name, values in lists.items()},
        **{name: np.array(value, np.int64) for name, value in (("from", 0), ("to", 6), ("by", 1))},
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "w2": rng.normal(size=(4, 1, 3, 3)).astype(np.float32),
        "wt": rng.normal(size=(4, 2, 2, 2)).astype(np.float32),
        "fc": rng.normal(size=(4, 5)).astype(np.float32),
        "four": rng.uniform(0.5, 1, 4).astype(np.float32),
        "double": np.array([1, 1, 2, 2], np.float32),
        "zero": np.array(0, np.float32),
    }
    model: ModelProto = build_model(
        nodes, {"x": ("N", 3, 8, 8)}, weights, ("y", "total", "best"), opset=13, types={"best": TensorProto.INT64}
    )
    return model


def test_the_crowded_model_is_sound(
    crowded: ModelProto, tmp_path: Path, agrees: Agrees, rng: np.random.Generator
) -> None:
    (tmp_path / "m.onnx").write_bytes(crowded.SerializeToString())
    agrees(tmp_path / "m.onnx", {"x": rng.normal(size=(2, 3, 8, 8)).astype(np.float32)})


def damaged(data: bytes, chance: random.Random, count: int) -> Iterator[bytes]:
    """Truncations, and one to four bytes replaced or one bit of them flipped."""
    for _ in range(count):
        copy = bytearray(data)
        if chance.random() < 0.1:
            yield bytes(copy[: chance.randrange(len(copy))])
            continue
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            at = chance.randrange(len(copy))
            copy[at] = chance.choice([chance.randrange(256), copy[at] ^ (1 << chance.randrange(8)), 0xFF, 0x80, 0])
        yield bytes(copy)


def hostile(model: ModelProto, chance: random.Random, count: int) -> Iterator[bytes]:
    """Well-formed protobuf with extreme numbers, wrong names, other operations and other versions."""
    for _ in range(count):
        copy = ModelProto()
        copy.CopyFrom(model)
        for _ in range(chance.choice([1, 1, 2, 3])):
            chance.choice([_attribute, _attribute, _tensor, _tensor, _dims, _wiring, _operation, _header])(copy, chance)
        yield copy.SerializeToString()


def _attribute(model: ModelProto, chance: random.Random) -> None:
    attribute = chance.choice([a for n in model.graph.node for a in n.attribute])
    if attribute.ints:
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(EXTREME)
    elif attribute.s:
        attribute.s = chance.choice(TEXTS)
    elif attribute.HasField("f"):
        attribute.f = chance.choice(REALS)
    else:
        attribute.i = chance.choice(EXTREME)


def _tensor(model: ModelProto, chance: random.Random) -> None:
    small = [t for t in model.graph.initializer if len(t.raw_data) < 80]
    tensor = chance.choice([t for t in small if len(t.raw_data) == math.prod(t.dims) * (4 if t.data_type == 1 else 8)])
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[chance.randrange(array.size)] = chance.choice(REALS if array.dtype.kind == "f" else EXTREME)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _dims(model: ModelProto, chance: random.Random) -> None:
    tensor = chance.choice([t for t in model.graph.initializer if t.dims])
    tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(EXTREME)


def _wiring(model: ModelProto, chance: random.Random) -> None:
    node = chance.choice([n for n in model.graph.node if n.input])
    names = ["", *(t.name for t in model.graph.initializer), *(o for n in model.graph.node for o in n.output)]
    node.input[chance.randrange(len(node.input))] = chance.choice(names)


def _operation(model: ModelProto, chance: random.Random) -> None:
    names = [n.op_type for n in model.graph.node]
    chance.choice(model.graph.node).op_type = chance.choice([*names, *OTHER_OPS])


def _header(model: ModelProto, chance: random.Random) -> None:
    tensor = model.graph.input[0].type.tensor_type
    if chance.random() < 0.4:
        tensor.shape.dim[chance.randrange(4)].dim_value = chance.choice(EXTREME)
    elif chance.random() < 0.5:
        tensor.elem_type = chance.randrange(25)
    else:
        model.opset_import[0].version = chance.choice([9, 10, 11, 12, 17, 18, 21, 26, 27, -1])


@pytest.mark.parametrize("kind", ["damaged", "hostile"])
def test_only_qcc_errors_escape(kind: str, crowded: ModelProto, tmp_path: Path) -> None:
    chance = random.Random(2024)
    data = crowded.SerializeToString()
    variants = damaged(data, chance, 250) if kind == "damaged" else hostile(crowded, chance, 250)
    refused = 0
    path = tmp_path / "m.onnx"
    for variant in variants:
        path.write_bytes(variant)
        try:
            load_model(path)
        except QccError as e:
            refused += 1
            assert "\n" not in str(e)
            assert len(str(e)) < 4000
    assert refused > 120


def test_hostile_models_need_little_memory(crowded: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    tracemalloc.start()
    for variant in hostile(crowded, random.Random(5), 60):
        path.write_bytes(variant)
        try:
            load_model(path)
        except QccError:
            continue
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**30
