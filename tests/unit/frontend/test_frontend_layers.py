"""Every family of operations, over a symbolic batch, agrees with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, helper

from qcc.frontend.load import Model, load_model
from qcc.ir.types import BATCH

WriteModel = Callable[..., Path]
Agrees = Callable[..., Model]

RNG = np.random.default_rng(3)


def weights(*shape: int) -> NDArray[Any]:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> NDArray[Any]:
    return np.array(values, np.int64)


@dataclass(frozen=True)
class Case:
    """One node (or more) from ``x``, of one sample's shape, to ``y``."""

    nodes: tuple[NodeProto, ...]
    shape: tuple[int, ...]
    weights: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    opset: int = 17


def case(op: str, shape: tuple[int, ...], opset: int = 17, inputs: str = "", outputs: str = "y", **more: Any) -> Case:
    """A single node; keyword arguments that are arrays become inputs, the others attributes."""
    arrays = {k: v for k, v in more.items() if isinstance(v, np.ndarray)}
    attrs = {k: v for k, v in more.items() if not isinstance(v, np.ndarray)}
    names = inputs.split(",") if inputs else ["x", *arrays]
    return Case((helper.make_node(op, names, outputs.split(","), **attrs),), shape, arrays, opset)


def convolutions() -> Iterator[tuple[str, Case]]:
    yield "1-d", case("Conv", (4, 9), w=weights(6, 4, 3), b=weights(6), pads=[2, 0], strides=[2])
    yield "1-d depthwise", case("Conv", (4, 9), w=weights(4, 1, 3), group=4, dilations=[2])
    yield "asymmetric", case("Conv", (3, 7, 8), w=weights(5, 3, 3, 2), pads=[0, 1, 2, 0], strides=[2, 1])
    yield "grouped", case("Conv", (6, 5, 5), w=weights(4, 3, 3, 3), b=weights(4), group=2)
    yield "dilated", case("Conv", (2, 9, 9), w=weights(3, 2, 3, 3), dilations=[2, 3], pads=[2, 3, 2, 3])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield f"auto_pad {mode}", case("Conv", (2, 7, 6), w=weights(3, 2, 2, 3), auto_pad=mode, strides=[2, 2])
    yield "opset 9", case("Conv", (2, 5, 5), opset=9, w=weights(3, 2, 3, 3), kernel_shape=[3, 3])


def transposed_convolutions() -> Iterator[tuple[str, Case]]:
    w = weights(4, 3, 3, 3)
    yield "1-d", case("ConvTranspose", (4, 5), w=weights(4, 2, 3), b=weights(4), group=2, strides=[2], pads=[1, 0])
    yield "cropped", case("ConvTranspose", (4, 5, 4), w=w, strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 0])
    yield "dilated", case("ConvTranspose", (4, 3, 3), w=w, dilations=[2, 1], b=weights(3))
    yield "output_shape", case("ConvTranspose", (4, 3, 3), w=w, strides=[2, 2], output_shape=[6, 8])
    for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        yield f"auto_pad {mode}", case("ConvTranspose", (4, 3, 3), w=w, auto_pad=mode, strides=[2, 2])
    narrow = weights(4, 1, 2, 2)
    yield "kernel below stride", case("ConvTranspose", (4, 3, 3), w=narrow, auto_pad="SAME_UPPER", strides=[3, 3])


def pools() -> Iterator[tuple[str, Case]]:
    for op in ("MaxPool", "AveragePool"):
        name = op.lower()
        yield f"{name} 1-d", case(op, (3, 10), kernel_shape=[3], strides=[2], pads=[1, 0])
        yield f"{name} ceil", case(op, (3, 8, 7), kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1)
        last: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1}
        yield f"{name} last window in the padding", case(op, (2, 6, 7), opset=19, **last)
        yield f"{name} dilated", case(op, (2, 9, 8), opset=19, kernel_shape=[2, 3], dilations=[2, 2])
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID"):
            yield f"{name} {mode}", case(op, (2, 7, 6), kernel_shape=[3, 2], strides=[2, 2], auto_pad=mode)
    counted: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}
    yield "padding counts", case("AveragePool", (2, 6, 7), **counted)
    yield "padding counts, ceil", case("AveragePool", (2, 6, 8), opset=19, ceil_mode=1, **counted)
    yield "global average", case("GlobalAveragePool", (3, 4, 5))
    yield "global max, 1-d", case("GlobalMaxPool", (3, 4))


def products() -> Iterator[tuple[str, Case]]:
    w = weights(6, 4)
    yield "gemm", case("Gemm", (6,), w=w, c=weights(4), alpha=0.5, beta=2.0)
    yield "gemm transposed", case("Gemm", (6,), w=w.T.copy(), c=weights(1, 4), transB=1)
    yield "gemm, scalar bias", case("Gemm", (6,), w=w, c=np.array(2.5, np.float32))
    yield "gemm, no bias", case("Gemm", (6,), w=w)
    yield "matmul", case("MatMul", (6,), w=w)
    yield "matmul, three axes", case("MatMul", (3, 6), w=w)
    yield "matmul, vector", case("MatMul", (3, 6), w=weights(6))
    yield "matmul, stacked matrix", case("MatMul", (3, 6), w=weights(1, 6, 4))
    yield "matmul, stack", case("MatMul", (3, 2, 6), w=weights(3, 6, 4))
    yield "matmul, constant first", case("MatMul", (6, 5), inputs="w,x", w=weights(4, 6))
    yield "matmul, constant vector first", case("MatMul", (6, 5), inputs="w,x", w=weights(6))
    swap = helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1])
    yield "matmul of two", Case((swap, helper.make_node("MatMul", ["x", "t"], ["y"])), (3, 4))


def pointwise() -> Iterator[tuple[str, Case]]:
    plain = "Abs Neg Sign Floor Ceil Round Exp Sin Cos Atan Sinh Asinh Tanh Erf Sigmoid Softplus Softsign Relu"
    for op in (*plain.split(), "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "LeakyRelu", "ThresholdedRelu"):
        yield op, case(op, (3, 4))
    yield "Mish", case("Mish", (3, 4), opset=18)
    for kind in ("none", "tanh"):
        yield f"Gelu {kind}", case("Gelu", (3, 4), opset=20, approximate=kind)
    yield "HardSigmoid of torch", case("HardSigmoid", (3,), alpha=1 / 6, beta=0.5)
    yield "Elu alpha", case("Elu", (3,), alpha=0.3)
    yield "Celu alpha", case("Celu", (3,), alpha=2.5)
    yield "Shrink", case("Shrink", (3,), lambd=0.4, bias=0.2)
    yield "square", case("Pow", (3, 4), p=np.array(2, np.float32))
    yield "powers", case("Pow", (2,), p=np.array([2, 3], np.float32))
    yield "exponential", case("Pow", (2,), inputs="b,x", b=np.array(2, np.float32))
    yield "Relu6 as attributes", case("Clip", (3, 4), opset=9, min=0.0, max=6.0)
    yield "Relu6 as inputs", case("Clip", (3, 4), lo=np.array(0, np.float32), hi=np.array(6, np.float32))
    yield "clip above", case("Clip", (3, 4), inputs="x,,hi", hi=np.array(0.5, np.float32))
    yield "PRelu", case("PRelu", (3, 4, 4), slope=weights(3, 1, 1))
    yield "PRelu, one slope", case("PRelu", (3, 4, 4), slope=weights(1, 1, 1))


def elementwise() -> Iterator[tuple[str, Case]]:
    for op in ("Add", "Sub", "Mul", "Div", "Min", "Max"):
        yield f"{op} scalar", case(op, (3, 4), c=np.array(1.5, np.float32))
        yield f"{op} channels", case(op, (3, 4), c=weights(3, 1))
        yield f"{op} reversed", case(op, (3, 4), inputs="c,x", c=weights(1, 3, 1))
        negated = helper.make_node("Neg", ["x"], ["n"])
        yield f"{op} of two", Case((negated, helper.make_node(op, ["x", "n"], ["y"])), (3, 4))
    yield "Sum", case("Sum", (3,), inputs="x,x,c", c=weights(3))
    yield "Mean", case("Mean", (3,), inputs="x,c", c=weights(3))
    yield "batch norm", case("BatchNormalization", (3, 4, 5), **_normalization(3))
    yield "batch norm of vectors", case("BatchNormalization", (5,), **_normalization(5))


def _normalization(channels: int) -> dict[str, Any]:
    parts = {name: weights(channels) for name in ("scale", "bias", "mean")}
    return {**parts, "variance": np.abs(weights(channels)) + 0.1}


def reductions() -> Iterator[tuple[str, Case]]:
    names = "Mean Sum Max Min L1 L2 SumSquare LogSumExp"
    for op in (f"Reduce{name}" for name in names.split()):
        yield op, case(op, (3, 4, 5), opset=13, **_axes_for(op, [2, -1]))
        yield f"{op} kept", case(op, (3, 4, 5), opset=11, axes=[1], keepdims=1)
    yield "axes as input", case("ReduceMean", (3, 4, 5), opset=18, axes=ints(-1, 2), keepdims=0)
    yield "no axes, no-op", case("ReduceMean", (3,), opset=18, inputs="x", noop_with_empty_axes=1)
    yield "ArgMax", case("ArgMax", (4, 5), axis=-1, keepdims=0)
    yield "ArgMin", case("ArgMin", (4, 5), axis=1)
    for opset in (9, 11, 13):
        for op in ("Softmax", "LogSoftmax"):
            yield f"{op} at {opset}", case(op, (3, 4), opset=opset)
            yield f"{op} at {opset}, axis 1", case(op, (3, 4), opset=opset, axis=1)


def _axes_for(op: str, axes: list[int]) -> dict[str, Any]:
    if op == "ReduceSum":
        return {"axes": np.array(axes, np.int64), "keepdims": 0}
    return {"axes": axes, "keepdims": 0}


def movement() -> Iterator[tuple[str, Case]]:
    yield "slice attributes", case("Slice", (4, 6), opset=9, starts=[1, -4], ends=[3, 2**31 - 1], axes=[1, 2])
    strided: dict[str, Any] = {"s": ints(0, 5), "e": ints(2**63 - 1, -(2**63)), "a": ints(1, -1), "t": ints(2, -2)}
    yield "slice strided and reversed", case("Slice", (5, 6), **strided)
    yield "slice whole batch", case("Slice", (4,), s=ints(0, 1), e=ints(2**63 - 1, 3))
    yield "pad attributes", case("Pad", (3, 4), opset=9, pads=[0, 1, 0, 0, 2, 1], value=0.5)
    yield "crop and pad", case("Pad", (3, 6), p=ints(0, 0, -1, 0, 2, 1))
    for mode in ("reflect", "edge"):
        yield f"pad {mode}", case("Pad", (3, 5, 6), p=ints(0, 0, 1, 2, 0, 0, 2, 1), mode=mode)
    yield "pad axes", case("Pad", (3, 4), opset=19, inputs="x,p,,a", p=ints(1, 1), a=ints(-1), mode="wrap")
    yield "gather one", case("Gather", (4, 5), i=np.array(-2, np.int64), axis=2)
    yield "gather many", case("Gather", (4, 5), i=np.array([[3, 1], [0, 0]], np.int64), axis=1)
    yield "tile", case("Tile", (2, 3), r=ints(1, 2, 3))
    yield "expand", case("Expand", (1, 3), s=ints(1, 4, 3))
    yield "concat", case("Concat", (3, 4), inputs="x,x", axis=-1)
    yield "split equally", case("Split", (6, 2), opset=13, outputs="a,y,b", axis=1)
    yield "split attribute", case("Split", (6, 2), opset=11, outputs="a,y", axis=1, split=[2, 4])
    yield "split input", case("Split", (6, 2), opset=13, outputs="a,y", s=ints(5, 1), axis=-2)
    yield "split num_outputs", case("Split", (7, 2), opset=18, outputs="a,b,y", axis=1, num_outputs=3)


def layouts() -> Iterator[tuple[str, Case]]:
    yield "reshape", case("Reshape", (3, 4), s=ints(0, 2, -1))
    yield "reshape, batch inferred", case("Reshape", (3, 4), s=ints(-1, 12))
    yield "flatten", case("Flatten", (3, 4))
    yield "transpose", case("Transpose", (3, 4), perm=[0, 2, 1])
    yield "squeeze attribute", case("Squeeze", (1, 4, 1), opset=11, axes=[1, -1])
    yield "squeeze input", case("Squeeze", (1, 4, 1), a=ints(3))
    yield "unsqueeze attribute", case("Unsqueeze", (4,), opset=11, axes=[1, 3])
    yield "unsqueeze input", case("Unsqueeze", (4,), a=ints(-1, 1))
    for mode in ("DCR", "CRD"):
        yield f"depth to space {mode}", case("DepthToSpace", (8, 2, 3), blocksize=2, mode=mode)
    yield "space to depth", case("SpaceToDepth", (3, 4, 6), blocksize=2)


def resizes() -> Iterator[tuple[str, Case]]:
    nothing = np.zeros(0, np.float32)

    def by_scales(shape: tuple[int, ...], *scales: float, opset: int = 13, **attrs: Any) -> Case:
        return case("Resize", shape, opset=opset, roi=nothing, s=np.array([1, *scales], np.float32), **attrs)

    transforms = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for transform in (*transforms, "half_pixel_symmetric"):
        opset = 19 if transform == "half_pixel_symmetric" else 13
        attrs: dict[str, Any] = {"coordinate_transformation_mode": transform, "opset": opset}
        yield f"linear {transform}", by_scales((2, 4, 5), 1, 2.3, 0.6, mode="linear", **attrs)
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
            nearest: dict[str, Any] = {"mode": "nearest", "nearest_mode": rounding, **attrs}
            yield f"nearest {transform} {rounding}", by_scales((2, 4, 5), 1, 2, 1.5, **nearest)
    yield "linear, NHWC", by_scales((4, 5, 2), 2, 2, 1, mode="linear", coordinate_transformation_mode="asymmetric")
    yield "linear, 1-d", by_scales((2, 7), 1, 1.7, mode="linear")
    axes: dict[str, Any] = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": "not_larger"}
    yield "axes and policy", case("Resize", (2, 4, 5), opset=18, inputs="x,,,z", z=ints(9, 20), **axes)
    doubled = np.array([1, 1, 2, 2], np.float32)
    yield "upsample 9", case("Upsample", (2, 3, 4), opset=9, s=doubled, mode="nearest")
    yield "upsample 9, linear", case("Upsample", (2, 3, 4), opset=9, s=doubled, mode="linear")
    yield "resize 10", case("Resize", (2, 5, 6), opset=10, s=np.array([1, 1, 0.5, 1.5], np.float32), mode="nearest")


FAMILIES = (
    convolutions,
    transposed_convolutions,
    pools,
    products,
    pointwise,
    elementwise,
    reductions,
    movement,
    layouts,
    resizes,
)
CASES = {f"{family.__name__}: {name}": c for family in FAMILIES for name, c in family()}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_onnxruntime(name: str, write_model: WriteModel, agrees: Agrees) -> None:
    c = CASES[name]
    types = {"y": 7} if "Arg" in name else {}
    path = write_model(c.nodes, {"x": ("N", *c.shape)}, c.weights, opset=c.opset, types=types)
    x = np.random.default_rng(1).normal(size=(3, *c.shape)).astype(np.float32)
    model = agrees(path, {"x": x})
    assert model.graph.inputs[0].type.shape == (BATCH, *c.shape)
    assert model.graph.outputs[0].type.shape[0] == BATCH


def test_domains_of_functions_that_need_positive_input(write_model: WriteModel, agrees: Agrees) -> None:
    ops = ("Log", "Sqrt", "Reciprocal", "Acosh", "Tan")
    path = write_model([helper.make_node(op, ["x"], [op]) for op in ops], {"x": ("N", 4)}, outputs=ops)
    agrees(path, {"x": np.array([[1.0, 1.1, 1.3, 2.5]], np.float32)})


def test_functions_of_the_unit_interval(write_model: WriteModel, agrees: Agrees) -> None:
    ops = ("Asin", "Acos", "Atanh")
    path = write_model([helper.make_node(op, ["x"], [op]) for op in ops], {"x": ("N", 4)}, outputs=ops)
    agrees(path, {"x": np.array([[-0.9, 0.0, 0.3, 0.8]], np.float32)})


def test_equal_weights_are_one_constant(write_model: WriteModel) -> None:
    nodes = [helper.make_node("Mul", ["x", "c"], ["a"]), helper.make_node("Add", ["a", "c"], ["y"])]
    graph = load_model(write_model(nodes, {"x": ("N", 4)}, {"c": weights(4)})).graph
    assert [o.result.name for o in graph.ops if o.kind == "constant"] == ["c"]


def test_swish_of_opset_24(write_model: WriteModel) -> None:
    path = write_model([helper.make_node("Swish", ["x"], ["y"], alpha=2.0)], {"x": ("N", 4)}, opset=24, ir=10)
    (o,) = load_model(path).graph.ops
    assert o.attrs["fn"] == "mul(x, sigmoid(mul(x, 2.0)))"
