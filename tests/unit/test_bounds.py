"""Overflow certificates: exact where the inputs can reach the bound, and never exceeded."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.bounds import Interval, certificates, code_ranges
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify.fuzz_graphs import make_case
from qcc.verify.interp import evaluate
from qcc.verify.windows import Window, convolve

Array = NDArray[Any]
I32: dict[str, Any] = {"qmin": -(1 << 31), "qmax": (1 << 31) - 1}


def grid(bits: int, zero: int = 0, signed: bool = False) -> Quant:
    return Quant(bits, signed, (Dyadic(1, 0),), zero)


def ends(b: GraphBuilder, m: Array, c: Array) -> list[Value]:
    return [b.constant(m.astype(np.int32), "m"), b.constant(c.astype(np.int64), "c")]


def test_interval_arithmetic() -> None:
    a = Interval(-3, 5)
    assert (a * -2, a * Interval(-1, 4), a + 1, a - 1) == (
        Interval(-10, 6),
        Interval(-12, 20),
        Interval(-2, 6),
        Interval(-4, 4),
    )
    assert [Interval(lo, hi).bits for lo, hi in ((0, 0), (-1, 0), (0, 1), (-128, 127), (-129, 0), (0, 128))] == [
        1, 1, 2, 8, 9, 9,
    ]  # fmt: skip


def test_a_convolution_reaches_its_bounds_exactly() -> None:
    """Per channel, codes chosen by the sign of the weights give both ends of the certificate."""
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, (3, 2, 2, 2)).astype(np.int8)
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 2, 2, 2), "u8", grid(8, 17))
    m, c = np.array([5, -7, 11]), np.array([100, -200, 300])
    attrs: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1, "shift": 1}
    graph = b.graph([b.op("iconv2d", [x, b.constant(w), *ends(b, m, c)], name="y", dtype="i32", **attrs, **I32)])
    (certificate,) = certificates(graph).values()
    extremes = np.stack([np.where(s * w[n] > 0, 255, 0) for n in range(3) for s in (1, -1)])
    window = Window((2, 2), (1, 1), (0, 0, 0, 0), (1, 1))
    acc = convolve(extremes.astype(np.float64) - 17, w.astype(np.float64), window, 1)[..., 0, 0]
    assert (certificate.accumulator.low, certificate.accumulator.high) == (acc.min(), acc.max())
    raw = convolve(extremes.astype(np.float64), w.astype(np.float64), window, 1)
    assert (certificate.raw.low, certificate.raw.high) == (raw.min(), raw.max())
    total = acc * m + c
    assert (certificate.total.low, certificate.total.high) == (total.min(), total.max())
    assert certificate.reach >= certificate.total.magnitude


def test_residuals_and_clamped_operands_tighten_or_widen() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 4), "u8", grid(8))
    clamped = b.op(
        "ilinear", [b.constant(np.array([0], np.int64)), x, b.constant(np.array([2], np.int32))],
        name="clamped", dtype="u8", shift=1, qmin=10, qmax=20,
    )  # fmt: skip
    w = b.constant(np.ones((2, 4), np.int8), "w")
    r = b.input("r", (BATCH, 2), "i8", grid(8, signed=True))
    mr = b.constant(np.array([-3], np.int32), "mr")
    end = ends(b, np.array([2]), np.array([7]))
    y = b.op("idense", [clamped, w, *end, r, mr], name="y", dtype="i32", shift=1, **I32)
    graph = b.graph([y])
    assert code_ranges(graph)["clamped"] == Interval(10, 20)
    certificate = certificates(graph)["y"]
    assert certificate.accumulator == Interval(40, 80)
    assert certificate.total == Interval(2 * 40 - 3 * 127 + 7, 2 * 80 + 3 * 128 + 7)
    assert certificate.row() == ("y", "idense", "8", "11")


def test_padding_counts_as_zero() -> None:
    """Codes that never are at the zero point: the padding adds 0 to what an accumulator can be."""
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 1, 3, 3), "u8", grid(8))
    nearly_full = b.op(
        "ilinear", [b.constant(np.array([0], np.int64)), x, b.constant(np.array([2], np.int32))],
        name="h", quant=grid(8), shift=1, qmin=200, qmax=255,
    )  # fmt: skip
    pool: dict[str, Any] = {"kernel": (2, 2), "strides": (1, 1), "dilations": (1, 1), "shift": 1, **I32}
    inner = b.op("isum_pool2d", [nearly_full, *ends(b, np.array([1]), np.array([0]))],
                 name="inner", dtype="i32", pads=(0, 0, 0, 0), **pool)  # fmt: skip
    outer = b.op("isum_pool2d", [nearly_full, *ends(b, np.array([1]), np.array([0]))],
                 name="outer", dtype="i32", pads=(1, 0, 0, 0), **pool)  # fmt: skip
    found = certificates(b.graph([inner, outer]))
    assert found["inner"].accumulator == Interval(800, 1020)
    assert found["outer"].accumulator == Interval(0, 1020)


def test_no_random_graph_leaves_its_ranges() -> None:
    """Over all operations: every value that the reference computes lies in the range that was proved."""
    kinds = set()
    for index in range(150):
        case = make_case(21, index)
        ranges = code_ranges(case.graph)
        values = evaluate(case.graph, case.inputs, keep=ranges)
        for name, array in values.items():
            if array.size:
                assert ranges[name].low <= array.min() and array.max() <= ranges[name].high, (index, name)
        kinds |= {o.kind for o in case.graph.ops}
    assert len(kinds) > 18


def dense(weights: Array, quant: Quant, m: int = 1, c: int = 0) -> Graph:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, weights.shape[1]), quant.dtype, quant)
    operands = [x, b.constant(weights, "w"), *ends(b, np.array([m]), np.array([c]))]
    return b.graph([b.op("idense", operands, name="y", dtype="i32", shift=1, **I32)])


def test_the_last_accumulator_that_fits_and_the_first_that_does_not() -> None:
    wide = grid(16)
    fits = np.full((1, 258), 127, np.int8)
    fits[0, :2] = (120, 125)
    limit = ((1 << 31) - 1) // 65535
    assert int(fits.astype(int).sum()) <= limit < int(fits.astype(int).sum()) + 127
    assert certificates(dense(fits, wide))["y"].accumulator.bits == 32
    with pytest.raises(VerifyError, match=r"idense %y: its accumulator may reach .*needs 33 bits"):
        certificates(dense(np.full((1, 260), 127, np.int8), wide))


def test_epilogues_beyond_int64_are_refused() -> None:
    weights = np.full((1, 258), 126, np.int8)
    fine = dense(weights, grid(16), m=(1 << 31) - 1, c=(1 << 62))
    assert certificates(fine)["y"].total.bits == 64
    with pytest.raises(VerifyError, match=r"acc\*m \+ c may reach .* beyond int64"):
        certificates(dense(weights, grid(16), m=(1 << 31) - 1, c=(3 << 61)))


def test_computed_weights_are_refused() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 4), "u8", grid(8))
    w = b.input("w", (2, 4), "i8", grid(8, signed=True))
    y = b.op("idense", [x, w, *ends(b, np.array([1]), np.array([0]))], name="y", dtype="i32", shift=1, **I32)
    with pytest.raises(VerifyError, match="%w must be a constant"):
        certificates(b.graph([y]))


@pytest.mark.parametrize(
    "table",
    [np.zeros(256), np.full(256, 65536), np.full(256, -1)],
    ids=["zero", "wide", "minus"],
)
def test_bad_softmax_tables_are_refused(table: Array) -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 4), "u8", grid(8))
    y = b.op("isoftmax", [x, b.constant(table.astype(np.int32))], name="y", axis=1)
    with pytest.raises(VerifyError, match="its table must be 256 entries"):
        certificates(b.graph([y]))


def test_fractions_outside_the_unit_are_refused() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    x = b.input("x", (BATCH, 1, 2, 2), "u8", grid(8))
    lines: dict[str, Any] = {"h0": (0,), "h1": (1,), "hf": (2049,), "w0": (0,), "w1": (1,), "wf": (0,)}
    operands = [x, *ends(b, np.array([1]), np.array([0]))]
    y = b.op("iresize_linear", operands, name="y", dtype="i32", shift=1, **lines, **I32)
    with pytest.raises(VerifyError, match="'hf' must lie in"):
        certificates(b.graph([y]))


def test_certificates_become_plain_data() -> None:
    import json

    (certificate,) = certificates(dense(np.ones((1, 2), np.int8), grid(8))).values()
    assert json.loads(json.dumps(certificate.describe()))["accumulator"] == {"low": 0, "high": 510, "bits": 10}
    assert str(certificate) == "idense %y: 10-bit accumulator [0, 510], 10-bit epilogue"
