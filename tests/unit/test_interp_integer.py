"""The integer operations against definitions in Python integers, which never overflow or round."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Op, Stage, constant, op
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify.fuzz_graphs import make_case
from qcc.verify.interp import evaluate, evaluate_op

Array = NDArray[Any]
_SCALE = (Dyadic(1, 0),)


def grid(dtype: str, zero: int = 0) -> Quant:
    return Quant(int(dtype[1:]), dtype[0] == "i", _SCALE, zero)


# Definitions over arrays of Python integers (dtype object).


def _shifted(o: Op, slot: int, x: Array) -> Array:
    quant = o.operands[slot].type.quant
    return x - (quant.zero_point if quant else 0)


def _requantized(o: Op, total: Array) -> Array:
    shift, low, high = (o.int_attr(k) for k in ("shift", "qmin", "qmax"))
    return np.array([max(low, min(high, int(t) >> shift)) for t in total.flat], object).reshape(total.shape)


def _positions(o: Op, x: Array, kernel: Sequence[int]) -> Callable[[int, int, int, int, int, int], Any]:
    """Reads x[n, c] under kernel position (i, j) of the window at (row, column); 0 in the padding."""
    top, left, _, _ = o.ints_attr("pads")
    (sh, sw), (dh, dw) = o.ints_attr("strides"), o.ints_attr("dilations")

    def read(n: int, c: int, row: int, column: int, i: int, j: int) -> Any:
        at = row * sh + i * dh - top, column * sw + j * dw - left
        inside = 0 <= at[0] < x.shape[2] and 0 <= at[1] < x.shape[3]
        return x[n, c, at[0], at[1]] if inside else 0

    return read


def _per_channel(vector: Array) -> Array:
    return vector.reshape(-1, 1, 1)


def _iconv2d(o: Op, xs: list[Array]) -> Array:
    x, w = _shifted(o, 0, xs[0]), _shifted(o, 1, xs[1])
    kernel, per_group = w.shape[2:], w.shape[1]
    read = _positions(o, x, kernel)
    outputs_per_group = len(w) // o.int_attr("groups")
    acc = np.zeros((len(x), *o.result.type.shape[1:]), object)
    for n, f, row, column in np.ndindex(acc.shape):
        first = f // outputs_per_group * per_group
        acc[n, f, row, column] = sum(
            w[f, c, i, j] * read(n, first + c, row, column, i, j)
            for c, i, j in itertools.product(range(per_group), *map(range, kernel))
        )
    total = acc * _per_channel(xs[2]) + _per_channel(xs[3])
    if len(xs) == 6:
        total = total + xs[4] * _per_channel(xs[5])
    return _requantized(o, total)


def _idense(o: Op, xs: list[Array]) -> Array:
    total = _shifted(o, 0, xs[0]) @ _shifted(o, 1, xs[1]).T * xs[2] + xs[3]
    return _requantized(o, total + xs[4] * xs[5] if len(xs) == 6 else total)


def _imatmul(o: Op, xs: list[Array]) -> Array:
    return _requantized(o, np.matmul(_shifted(o, 0, xs[0]), _shifted(o, 1, xs[1])) * xs[2] + xs[3])


def _ilinear(o: Op, xs: list[Array]) -> Array:
    total = xs[0]
    for x, m in zip(xs[1::2], xs[2::2], strict=True):
        total = total + x * m
    return _requantized(o, total)


def _imul(o: Op, xs: list[Array]) -> Array:
    return _requantized(o, _shifted(o, 0, xs[0]) * _shifted(o, 1, xs[1]) * xs[2] + xs[3])


def _ilookup(o: Op, xs: list[Array]) -> Array:
    x, table = xs
    lowest = int(np.iinfo(o.operands[0].type.numpy).min)
    out = np.empty(x.shape, object)
    for at in np.ndindex(x.shape):
        out[at] = table[x[at] - lowest] if table.ndim == 1 else table[at[1], x[at] - lowest]
    return out


def _isum_pool2d(o: Op, xs: list[Array]) -> Array:
    x, kernel = _shifted(o, 0, xs[0]), o.ints_attr("kernel")
    read = _positions(o, x, kernel)
    acc = np.zeros((len(x), *o.result.type.shape[1:]), object)
    for n, c, row, column in np.ndindex(acc.shape):
        acc[n, c, row, column] = sum(read(n, c, row, column, i, j) for i, j in itertools.product(*map(range, kernel)))
    return _requantized(o, acc * xs[1] + xs[2])


def _ireduce_sum(o: Op, xs: list[Array]) -> Array:
    acc = np.sum(_shifted(o, 0, xs[0]), axis=o.ints_attr("axes"), keepdims=o.bool_attr("keepdims"))
    return _requantized(o, np.asarray(acc * xs[1] + xs[2], object))


def _iresize_linear(o: Op, xs: list[Array]) -> Array:
    x = _shifted(o, 0, xs[0])
    lines = [list(zip(*(o.ints_attr(a + k) for k in "01f"), strict=True)) for a in "hw"]
    acc = np.zeros((*x.shape[:2], *map(len, lines)), object)
    for (row, (h0, h1, hf)), (column, (w0, w1, wf)) in itertools.product(*map(enumerate, lines)):
        for h, fh in ((h0, 2048 - hf), (h1, hf)):
            for w, fw in ((w0, 2048 - wf), (w1, wf)):
                acc[:, :, row, column] += x[:, :, h, w] * fh * fw
    return _requantized(o, acc * xs[1] + xs[2])


def _isoftmax(o: Op, xs: list[Array]) -> Array:
    axis = o.int_attr("axis")
    x = np.moveaxis(xs[0], axis, -1)
    out = np.empty(x.shape, object)
    for at in np.ndindex(x.shape[:-1]):
        e = [xs[1][max(x[at]) - code] for code in x[at]]
        out[at] = [min((term * (2**40 // sum(e)) + 2**31) >> 32, 255) for term in e]
    return np.moveaxis(out, -1, axis)


DEFINITIONS: dict[str, Callable[[Op, list[Array]], Array]] = {
    "iconv2d": _iconv2d,
    "idense": _idense,
    "imatmul": _imatmul,
    "ilinear": _ilinear,
    "imul": _imul,
    "ilookup": _ilookup,
    "isum_pool2d": _isum_pool2d,
    "ireduce_sum": _ireduce_sum,
    "iresize_linear": _iresize_linear,
    "isoftmax": _isoftmax,
}


def test_arithmetic_equals_its_definition_in_python_integers() -> None:
    """Every arithmetic operation of many random graphs, with whatever shapes and extremes they have."""
    seen = dict.fromkeys(DEFINITIONS, 0)
    for index in range(160):
        case = make_case(11, index)
        names = [o.result.name for o in case.graph.ops]
        values = {**case.inputs, **evaluate(case.graph, case.inputs, keep=names)}
        for o in case.graph.ops:
            operands = [values[v.name].astype(object) for v in o.operands]
            if o.kind in DEFINITIONS and values[o.result.name].size * (operands[1].size if operands else 0) < 40000:
                wanted = DEFINITIONS[o.kind](o, operands)
                np.testing.assert_array_equal(values[o.result.name], wanted.astype(np.int64), str(o))
                assert values[o.result.name].dtype == o.result.type.numpy
                seen[o.kind] += 1
    assert min(seen.values()) >= 3, seen


def _ilinear_graph(m: int, c: int, shift: int, dtype: str) -> Graph:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 1), "i32", grid("i32"))
    operands = [b.constant(np.array([c], np.int64)), x, b.constant(np.array([m], np.int32))]
    q = grid(dtype)
    return b.graph([b.op("ilinear", operands, name="y", quant=q, shift=shift, qmin=q.qmin, qmax=q.qmax)])


@settings(deadline=None, derandomize=True, max_examples=300, database=None)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**61), 2**61),
    st.integers(1, 32),
    st.sampled_from(["u8", "i8", "u16", "i16", "i32"]),
)
def test_requantization_of_any_accumulator(code: int, m: int, c: int, shift: int, dtype: str) -> None:
    got = evaluate(_ilinear_graph(m, c, shift, dtype), {"x": np.array([[code]], np.int32)})["y"]
    q = grid(dtype)
    assert got.item() == max(q.qmin, min(q.qmax, (code * m + c) >> shift))


@settings(deadline=None, derandomize=True, max_examples=30, database=None)
@given(
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**40), 2**40),
    st.integers(1, 32),
    st.integers(0, 255),
    st.sampled_from(["u8", "i8"]),
)
def test_requantization_of_every_byte(m: int, c: int, shift: int, zero: int, dtype: str) -> None:
    """All 256 codes of an operand with a zero point, through a product with the constant one."""
    info = np.iinfo({"u8": np.uint8, "i8": np.int8}[dtype])
    zero += int(info.min)
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 1), dtype, grid(dtype, zero))
    one = b.constant(np.array([1], np.uint8), "one", grid("u8"))
    ends = [b.constant(np.array([m], np.int32)), b.constant(np.array([c], np.int64))]
    y = b.op("imul", [x, one, *ends], name="y", dtype="i16", shift=shift, qmin=-32768, qmax=32767)
    codes = np.arange(info.min, info.max + 1, dtype=info.dtype).reshape(-1, 1)
    got = evaluate(b.graph([y]), {"x": codes})["y"]
    wanted = [max(-32768, min(32767, ((code - zero) * m + c) >> shift)) for code in range(info.min, info.max + 1)]
    assert got.reshape(-1).tolist() == wanted


@pytest.mark.parametrize("dtype", ["u8", "i8"])
@pytest.mark.parametrize("rows", [1, 3])
def test_tables_on_every_byte(dtype: str, rows: int) -> None:
    info = np.iinfo({"u8": np.uint8, "i8": np.int8}[dtype])
    table = np.random.default_rng(0).integers(-(2**31), 2**31, (rows, 256)).astype(np.int32)
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, rows), dtype, grid(dtype, 5))
    y = b.op("ilookup", [x, b.constant(table[0] if rows == 1 else table)], name="y", dtype="i32")
    codes = np.repeat(np.arange(info.min, info.max + 1, dtype=info.dtype)[:, None], rows, axis=1)
    np.testing.assert_array_equal(evaluate(b.graph([y]), {"x": codes})["y"], table.T)


@pytest.mark.parametrize("zero", [0, 3, 128, 255])
def test_padding_holds_the_zero_point(zero: int) -> None:
    """A padded convolution equals an unpadded one over a map whose border holds the zero point."""
    rng = np.random.default_rng(1)
    w = rng.integers(-128, 128, (2, 3, 3, 3)).astype(np.int8)
    x = rng.integers(0, 256, (2, 3, 5, 4)).astype(np.uint8)

    def convolved(codes: Array, pads: tuple[int, int, int, int]) -> Array:
        b = GraphBuilder("g", Stage.INTEGER)
        value = b.input("x", (BATCH, *codes.shape[1:]), "u8", grid("u8", zero))
        ends = [b.constant(np.array([1 << 20], np.int32)), b.constant(np.array([1 << 31], np.int64))]
        attrs: dict[str, Any] = {
            "strides": (1, 1),
            "dilations": (1, 1),
            "groups": 1,
            "shift": 21,
            "qmin": -32768,
            "qmax": 32767,
        }
        y = b.op("iconv2d", [value, b.constant(w), *ends], dtype="i16", name="y", pads=pads, **attrs)
        return evaluate(b.graph([y]), {"x": codes})["y"]

    bordered = np.pad(x, ((0, 0), (0, 0), (1, 0), (2, 1)), constant_values=zero)
    np.testing.assert_array_equal(convolved(x, (1, 2, 0, 1)), convolved(bordered, (0, 0, 0, 0)))


@pytest.mark.parametrize(("width", "exact_in"), [(400, np.float32), (60000, np.float64)])
def test_sums_are_exact_on_both_sides_of_the_float32_limit(width: int, exact_in: type) -> None:
    """The worst case: every product at its extreme, so that one rounding anywhere would show."""
    w = np.full((1, width), -128, np.int8)
    w[0, 0] = -127
    bound = 128 * 255 * width
    assert (bound < 1 << 24) == (exact_in is np.float32)
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, width), "u8", grid("u8"))
    ends = [b.constant(np.array([2], np.int32)), b.constant(np.array([0], np.int64))]
    y = b.op("idense", [x, b.constant(w), *ends], dtype="i32", shift=1, qmin=-(2**31), qmax=2**31 - 1, name="y")
    got = evaluate(b.graph([y]), {"x": np.full((1, width), 255, np.uint8)})["y"]
    assert got.item() == -128 * 255 * width + 255


def test_sums_beyond_any_accumulator_are_refused() -> None:
    x = GraphBuilder("g", Stage.INTEGER).input("x", (1, 1 << 12), "i32", grid("i32"))
    w = constant("w", np.full((1, 1 << 12), 1 << 30, np.int32))
    ends = [constant("m", np.ones(1, np.int32)), constant("c", np.zeros(1, np.int64))]
    result = x.typed(shape=(1, 1))
    o = op("idense", [x, w.result, *(e.result for e in ends)], [result], shift=1, qmin=0, qmax=1)
    with pytest.raises(VerifyError, match="accumulator"):
        evaluate_op(o, [np.zeros((1, 1 << 12), np.int32), w.array, *(e.array for e in ends)])
