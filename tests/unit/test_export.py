"""Exported ONNX: it loads, it is standard, it holds no float at INTEGER, and it is the same every time."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcc.errors import UnsupportedError, VerifyError
from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify.compare import sqnr_db
from qcc.verify.fuzz_graphs import make_case
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel

Array = NDArray[Any]
_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}
CONV: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}


def quantized_graph(bits: int = 8) -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder("q", Stage.QUANTIZED)
    x = b.input("x", (BATCH, 3, 6, 6), quant=Quant(8, False, (Dyadic.of(0.031),), 128))
    scales = tuple(Dyadic.of(0.003 * (i + 1)) for i in range(4))
    w = b.constant(rng.normal(size=(4, 3, 3, 3)).astype(np.float32) * 0.2, "w", Quant(8, True, scales, axis=0))
    bias = b.constant(rng.normal(size=4).astype(np.float32), "b")
    grid = Quant(bits, False, (Dyadic.of(4.0 / (1 << bits)),))
    h = b.op("conv2d", [x, w, bias], name="h", quant=grid, lo=0.0, **CONV)
    y = b.op("reduce_mean", [h], name="y", quant=Quant(32, True, (Dyadic(1, 20),)), axes=(2, 3), keepdims=False)
    return b.graph([y])


def integer_graph(dtype: str = "u8", m: int = 1 << 20, c: int = 1 << 23, shift: int = 24) -> Graph:
    rng = np.random.default_rng(0)
    b = GraphBuilder("i", Stage.INTEGER)
    x = b.input("x", (BATCH, 3, 6, 6), dtype, Quant(int(dtype[1:]), dtype[0] == "i", (Dyadic(1, 4),), 9))
    w = b.constant(rng.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8), "w")
    ends = [b.constant(np.full(4, m, np.int32), "m"), b.constant(np.full(4, c, np.int64), "c")]
    clamp: dict[str, Any] = {"shift": shift, "qmin": -(1 << 31), "qmax": (1 << 31) - 1}
    return b.graph([b.op("iconv2d", [x, w, *ends], name="y", dtype="i32", **CONV, **clamp)])


def random_codes(graph: Graph, batch: int = 2) -> dict[str, Array]:
    rng = np.random.default_rng(3)
    codes = {}
    for v in graph.inputs:
        info = np.iinfo(v.type.numpy)
        shape = [batch if d == BATCH else d for d in v.type.shape]
        codes[v.name] = rng.integers(info.min, info.max + 1, shape).astype(v.type.numpy)
    return codes


def types_of(model: onnx.ModelProto) -> set[int]:
    """Every element type in the model: inferred values, initializers, casts."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = inferred.graph
    infos = [*graph.input, *graph.output, *graph.value_info]
    produced = {name for node in graph.node for name in node.output}
    assert produced <= {i.name for i in infos}, "a value's type could not be inferred"
    casts = {a.i for node in graph.node for a in node.attribute if a.name == "to"}
    return {i.type.tensor_type.elem_type for i in infos} | {t.data_type for t in graph.initializer} | casts


def test_no_float_in_integer_models() -> None:
    """Over random graphs that together use every operation."""
    kinds = set()
    for index in range(80):
        graph = make_case(5, index).graph
        kinds |= {o.kind for o in graph.ops}
        model = export_onnx(graph)
        onnx.checker.check_model(model, full_check=True)
        assert not types_of(model) & _FLOATS
        assert not [a.name for n in model.graph.node for a in n.attribute if a.type == onnx.AttributeProto.FLOAT]
    assert len(kinds) > 18


def test_same_graph_same_bytes() -> None:
    for graph in (quantized_graph(), integer_graph(), make_case(5, 1).graph):
        again = parse(render(graph), const_store(graph))
        first, second = (export_onnx(g).SerializeToString(deterministic=True) for g in (graph, again))
        assert first == second


def test_stamps_are_what_onnxruntime_loads() -> None:
    model = export_onnx(integer_graph())
    assert model.ir_version <= 10
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 21)]


@pytest.mark.parametrize("bits", [8, 6, 16])
def test_quantized_models_agree_with_the_reference(bits: int) -> None:
    """To rounding: onnxruntime divides by the scale in float32, so a few codes differ by one."""
    graph = quantized_graph(bits)
    x = {"x": np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)}
    model = export_onnx(graph, keep=["h"])
    onnx.checker.check_model(model, full_check=True)
    got = OrtModel(model, optimize=False).run(x)
    wanted = evaluate(graph, x, keep=["h"])
    assert sqnr_db(wanted["h"], got["h"]) > {6: 35, 8: 45, 16: 80}[bits]
    np.testing.assert_allclose(got["y"], wanted["y"], atol=2e-3)
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.INT8 in stored.values(), "weights are stored as codes"
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert kinds.count("DequantizeLinear") == 3


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("dtype", ["u8", "i8", "u16", "i16"])
def test_integer_models_are_exact(dtype: str, optimize: bool) -> None:
    graph = integer_graph(dtype)
    codes = random_codes(graph)
    got = OrtModel(export_onnx(graph), optimize=optimize).run(codes)["y"]
    np.testing.assert_array_equal(got, evaluate(graph, codes)["y"])


@pytest.mark.parametrize("shift", [1, 8, 20, 32])
@pytest.mark.parametrize("c", [0, 3 << 61, -(3 << 61)])
def test_epilogues_near_the_ends_of_int64_are_exact(shift: int, c: int) -> None:
    """Past 2**62 the offset of the exported shift would overflow; past int32 onnxruntime's Clip is wrong."""
    graph = integer_graph(m=1 << 30, c=c, shift=shift)
    codes = random_codes(graph)
    for optimize in (True, False):
        got = OrtModel(export_onnx(graph), optimize=optimize).run(codes)["y"]
        np.testing.assert_array_equal(got, evaluate(graph, codes)["y"])


def test_clamps_do_not_trust_clip_of_int64() -> None:
    """Found by fuzzing: values in [2**31, 2**32) after the shift passed a Clip to [-128, 127] unchanged."""
    text = """graph @clip integer(%x: Nx1xi32 qi32<1*2^0:0>) {
  %c: 1xi64 = constant() {"value": [-48964]}
  %m: 1xi32 = constant() {"value": [-2147483648]}
  %y: Nx1xi8 qi8<1*2^0:0> = ilinear(%c, %x, %m) {"shift": 11, "qmin": -128, "qmax": 127}
  return %y
}
"""
    graph = parse(text)
    x = {"x": np.array([[3025], [-2258], [16364], [1700], [2147], [0]], np.int32)}
    got = OrtModel(export_onnx(graph)).run(x)["y"]
    assert got.reshape(-1).tolist() == [-128, 127, -128, -128, -128, -24]


def test_kept_values_and_narrow_types_keep_their_names() -> None:
    graph = make_case(1, 738).graph
    assert any(v.type.dtype == "i16" for v in graph.inputs), "the case is about 16-bit codes"
    names = [*(v.name for v in graph.inputs), *(o.result.name for o in graph.ops)]
    model = export_onnx(graph, keep=names)
    codes = random_codes(graph)
    wanted = evaluate(graph, codes, keep=names)
    got = OrtModel(model).run(codes)
    assert set(got) == set(names)
    for name in names:
        assert got[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(got[name], wanted[name])


def test_operations_that_change_nothing_keep_their_names() -> None:
    b = GraphBuilder("g")
    x = b.input("x", (BATCH, 2))
    y = b.op("clip", [x], name="y")
    z = b.op("pad", [y], name="z", pads=(0, 0, 0, 0), values=(0.0,))
    graph = b.graph([z, y])
    data = {"x": np.array([[1, -2]], np.float32)}
    got = OrtModel(export_onnx(graph)).run(data)
    assert {name: a.tolist() for name, a in got.items()} == {"y": [[1, -2]], "z": [[1, -2]]}


def test_bad_requests_are_named() -> None:
    with pytest.raises(VerifyError, match="no value %nowhere"):
        export_onnx(integer_graph(), keep=["nowhere"])
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 3), "u8", Quant(8, False, (Dyadic(1, 0),)))
    table = b.input("table", (256,), "u8")
    with pytest.raises(UnsupportedError, match="%table to be a constant"):
        export_onnx(b.graph([b.op("ilookup", [x, table], name="y", dtype="u8")]))


def test_padding_that_onnxruntime_would_fuse_into_a_pooling_too_small_for_it() -> None:
    text = """graph @m integer(%x: Nx1x1x1xu8 qu8<1*2^-4:0>) {
  %p: Nx1x2x2xu8 qu8<1*2^-4:0> = pad(%x) {"pads": [0, 0, 1, 1, 0, 0, 0, 0], "values": [0]}
  %y: Nx1x1x2xu8 qu8<1*2^-4:0> = max_pool2d(%p) {"dilations": [1, 2], "kernel": [4, 1], "pads": [2, 0, 2, 0], "strides": [3, 1]}
  return %y
}
"""  # noqa: E501 - a graph's text
    graph = parse(text)
    codes = {"x": np.array([3, 250], np.uint8).reshape(2, 1, 1, 1)}
    found = OrtModel(export_onnx(graph)).run(codes)["y"]
    assert np.array_equal(found, evaluate(graph, codes)["y"])
