"""The dyadic rewriting: every operation's integers are the quantized reals, to the rounding."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import PassError, VerifyError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.text import parse
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.ir.verify import verify
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import Capabilities
from qcc.verify.interp import evaluate
from qcc_passes.dyadic import Dyadic as DyadicPass
from qcc_passes.dyadic_scale import Requant, half_up
from qcc_passes.facts import Ranges
from qcc_passes.histogram import Histogram
from qcc_passes.observers import MinMax
from qcc_passes.quantize import Quantize

Array = NDArray[Any]
Build = Callable[[GraphBuilder, Value], Value]

WINDOW: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}


def weights(*shape: int, seed: int = 1, scale: float = 0.3) -> Array:
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def ranges_of(graph: Graph, inputs: Mapping[str, Array]) -> Ranges:
    names = [v.name for v in graph.inputs] + [o.result.name for o in graph.ops if o.kind != "constant"]
    seen = evaluate(graph, inputs, keep=names)
    return Ranges({n: Histogram.of(seen[n]) for n in names}, {}, MinMax())


def lowered(build: Build, shape: tuple[int, ...] = (BATCH, 3, 6, 5)) -> tuple[Graph, Graph, Array]:
    """The graph that ``build`` makes at QUANTIZED and at INTEGER, and data of its input."""
    b = GraphBuilder("t")
    x = b.input("x", shape)
    # A second operation keeps the built one away from the outputs, whose grids are 32 bits wide.
    y = build(b, x)
    graph = b.graph([b.op("map", [y], name="out", fn="add(x, 0.0)")])
    data = np.random.default_rng(0).normal(0.2, 1, (4, *shape[1:])).astype(np.float32)
    ctx = PassContext()
    ctx.facts.put(ranges_of(graph, {"x": data}))
    quantized = Pipeline((Quantize(wide_outputs=False),)).run(graph, ctx)
    return quantized, Pipeline((DyadicPass(),)).run(quantized, ctx), data


def conv(b: GraphBuilder, x: Value) -> Value:
    w, bias = b.constant(weights(4, 3, 3, 3)), b.constant(weights(4))
    return b.op("conv2d", [x, w, bias], groups=1, **WINDOW, lo=0.0, hi=2.0)


def conv_residual(b: GraphBuilder, x: Value) -> Value:
    w, bias = b.constant(weights(3, 1, 3, 3)), b.constant(weights(3))
    return b.op("conv2d", [x, w, bias, x], groups=3, **WINDOW)


def dense(b: GraphBuilder, x: Value) -> Value:
    flat = b.op("reshape", [x], shape=(BATCH, 90))
    return b.op("dense", [flat, b.constant(weights(7, 90)), b.constant(weights(7))], lo=0.0)


def matmul(b: GraphBuilder, x: Value) -> Value:
    return b.op("matmul", [x, b.op("transpose", [x], perm=(0, 1, 3, 2))])


def matmul_constant(b: GraphBuilder, x: Value) -> Value:
    return b.op("matmul", [x, b.constant(weights(3, 5, 4))])


def add_variables(b: GraphBuilder, x: Value) -> Value:
    return b.op("add", [x, b.op("clip", [x], lo=0.0)], hi=1.5)


def sub_variables(b: GraphBuilder, x: Value) -> Value:
    return b.op("sub", [x, b.op("clip", [x], lo=-0.5, hi=0.5)])


def sub_from_constant(b: GraphBuilder, x: Value) -> Value:
    return b.op("sub", [b.constant(weights(3, 1, 1)), x], lo=0.0)


def sub_constant(b: GraphBuilder, x: Value) -> Value:
    return b.op("sub", [x, b.constant(weights(1, 3, 1, 1))])


def mul_variables(b: GraphBuilder, x: Value) -> Value:
    return b.op("mul", [x, b.op("clip", [x], lo=0.0)])


def mul_constant(b: GraphBuilder, x: Value) -> Value:
    return b.op("mul", [x, b.constant(weights(3, 1, 1, scale=2))], lo=-1.0)


def mul_scalar(b: GraphBuilder, x: Value) -> Value:
    return b.op("mul", [x, b.constant(np.array(0.7, np.float32))])


def sigmoid_map(b: GraphBuilder, x: Value) -> Value:
    return b.op("map", [x], fn="mul(x, sigmoid(x))")


def channel_map(b: GraphBuilder, x: Value) -> Value:
    slope = b.constant(np.array([0.1, 0.5, -0.3], np.float32).reshape(3, 1, 1))
    return b.op("map", [x, slope], fn="where(less(x, 0.0), mul(p0, x), x)")


def partial_map(b: GraphBuilder, x: Value) -> Value:
    return b.op("map", [b.op("clip", [x], lo=0.0)], fn="sqrt(x)")


def avg_pool(b: GraphBuilder, x: Value) -> Value:
    return b.op("avg_pool2d", [x], kernel=(3, 3), ceil_pads=(0, 0), count_include_pad=True, **WINDOW)


def avg_pool_excluding(b: GraphBuilder, x: Value) -> Value:
    window = {**WINDOW, "strides": (2, 2)}
    return b.op("avg_pool2d", [x], kernel=(3, 3), ceil_pads=(1, 0), count_include_pad=False, **window)


def mean(b: GraphBuilder, x: Value) -> Value:
    return b.op("reduce_mean", [x], axes=(2, 3), keepdims=False)


def total(b: GraphBuilder, x: Value) -> Value:
    return b.op("reduce_sum", [x], axes=(1,), keepdims=True, lo=0.0)


def resize(b: GraphBuilder, x: Value) -> Value:
    rows: dict[str, Any] = {"h0": (0, 0, 2, 5), "h1": (1, 0, 3, 5), "hf": (0.3, 0.0, 0.5, 0.0)}
    return b.op("resize_linear", [x], **rows, w0=(0, 1, 3), w1=(1, 2, 4), wf=(0.25, 0.9, 0.5))


def softmax(b: GraphBuilder, x: Value) -> Value:
    return b.op("softmax", [x], axis=1)


def moves(b: GraphBuilder, x: Value) -> Value:
    pooled = b.op("max_pool2d", [x], kernel=(3, 3), **WINDOW)
    padded = b.op("pad", [pooled], pads=(0, 0, 1, 0, 0, 0, 0, 2), values=(0.5, -0.25, 0.0))
    cut = b.op("slice", [padded], axis=2, start=0, stop=7, step=2)
    top = b.op("reduce_max", [b.op("gather", [cut], axis=1, indices=(2, 0))], axes=(3,), keepdims=True)
    return b.op("concat", [top, b.op("dilate2d", [top], factors=(1, 1))], axis=3)


BUILDS = [
    conv, conv_residual, dense, matmul, matmul_constant, add_variables, sub_variables, sub_from_constant, sub_constant,
    mul_variables, mul_constant, mul_scalar, sigmoid_map, channel_map, partial_map, avg_pool, avg_pool_excluding, mean,
    total, resize, softmax, moves,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDS, ids=lambda f: f.__name__)
def test_integers_are_the_quantized_reals(build: Build) -> None:
    quantized, integer, data = lowered(build)
    verify(integer)
    quant = quantized.outputs[0].type.quant
    assert quant is not None and quant == integer.outputs[0].type.quant
    input_grid = integer.inputs[0].type.quant
    assert input_grid is not None
    codes = evaluate(integer, {"x": input_grid.quantize(data)})["out"]
    expected = quant.quantize(evaluate(quantized, {"x": data})["out"])
    apart = np.abs(codes.astype(int) - expected.astype(int))
    assert apart.max() <= 1, f"up to {apart.max()} codes apart"
    assert np.mean(apart == 0) > 0.97


def test_outputs_keep_32_bits_through_moves() -> None:
    b = GraphBuilder("t")
    x = b.input("x", (BATCH, 3, 4, 4))
    y = b.op("conv2d", [x, b.constant(weights(2, 3, 1, 1)), b.constant(weights(2))], groups=1, **WINDOW)
    out = b.op("reshape", [y], name="out", shape=(BATCH, 72))
    graph, data = b.graph([out]), np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    ctx = PassContext()
    ctx.facts.put(ranges_of(graph, {"x": data}))
    integer = Pipeline((Quantize(), DyadicPass())).run(graph, ctx)
    assert integer.outputs[0].type.dtype == "i32"
    quant, grid = integer.outputs[0].type.quant, integer.inputs[0].type.quant
    assert quant is not None and grid is not None
    codes = grid.quantize(data)
    exact = evaluate(graph, {"x": grid.dequantize(codes)})["out"]
    real = quant.dequantize(evaluate(integer, {"x": codes})["out"])
    np.testing.assert_allclose(real, exact, atol=0.02)


def test_the_shift_is_the_largest_that_31_bits_allow() -> None:
    grid = Quant(8, False, (Dyadic(1, 0),))
    assert Requant.of("t", grid, [Fraction(1, 3)]).shift == 32
    assert Requant.of("t", grid, [Fraction(1, 2)]).shift == 31
    assert Requant.of("t", grid, [Fraction(-1)]).shift == 30
    assert Requant.of("t", grid, [Fraction(1 << 29)]).shift == 1
    with pytest.raises(PassError, match="31-bit"):
        Requant.of("conv2d %y", grid, [Fraction(1 << 31)])


def test_rounding_is_half_up() -> None:
    assert [half_up(Fraction(n, 2)) for n in (-3, -1, 1, 3)] == [-1, 0, 1, 2]


def test_a_constant_off_every_grid_is_refused() -> None:
    end = Requant.of("t", Quant(8, False, (Dyadic(1, 100),)), [Fraction(1, 2)])
    with pytest.raises(PassError, match="dense %y"):
        end.offset("dense %y", Fraction(10**9))


def test_narrow_accumulators_are_refused() -> None:
    quantized, _, _ = lowered(conv)
    ctx = PassContext(capabilities=Capabilities(accumulator_bits=12))
    with pytest.raises(PassError, match="accumulators have 12 bits"):
        Pipeline((DyadicPass(),)).run(quantized, ctx)


def test_overflow_is_refused() -> None:
    def huge(b: GraphBuilder, x: Value) -> Value:
        flat = b.op("reshape", [x], shape=(BATCH, 90))
        wide = b.op("concat", [flat] * 1600, axis=1)
        return b.op("dense", [wide, b.constant(np.ones((2, 144000), np.float32)), b.constant(weights(2))])

    with pytest.raises(VerifyError, match="accumulator"):
        lowered(huge)


MAP = """graph @t quantized(%x: Nx2xf32 qu8<1*2^-4:0>) {{
  %y: Nx2xf32 qu8<1*2^-4:0> = map(%x) {{"fn": "{fn}"}}
  return %y
}}
"""


def test_a_map_defined_nowhere_is_refused() -> None:
    with pytest.raises(PassError, match="map %y: the function is undefined"):
        Pipeline((DyadicPass(),)).run(parse(MAP.format(fn="sqrt(sub(-1.0, x))")), PassContext())


def test_codes_outside_the_domain_take_the_nearest_value() -> None:
    graph = Pipeline((DyadicPass(),)).run(parse(MAP.format(fn="sqrt(sub(x, 4.0))")), PassContext())
    (table,) = (o.array for o in graph.ops if o.kind == "constant")
    assert not table[:65].any() and table[65] == 4 and table[255] == 55


def test_nothing_is_rewritten_without_grids() -> None:
    b = GraphBuilder("t", Stage.QUANTIZED)
    x = b.input("x", (BATCH, 4))
    graph = b.graph([b.op("clip", [x], lo=0.0)])
    with pytest.raises(PassError, match="run quantize first"):
        Pipeline((DyadicPass(),)).run(graph, PassContext())
