"""Quantization in machine code against its definition in numpy, bit for bit."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.artifact.border import quantize_input
from qcc.artifact.manifest import CodeType, Grid, TensorSpec
from qcc.errors import ArtifactError, ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.runtime.tvm_border import NativeBorder
from qcc.runtime.tvm_call import CALL, DECODE, ENCODE
from qcc_targets.cpu.border import border_functions
from qcc_targets.cpu.compiler import Compiler, Unit
from qcc_targets.cpu.isa import available

TYPES: dict[CodeType, tuple[int, bool]] = {"uint8": (8, False), "int8": (8, True), "uint16": (16, False)}


def spec(dtype: CodeType, mult: int, shift: int, zero_point: int, bits: int | None = None) -> TensorSpec:
    grid = Grid(bits=bits or TYPES[dtype][0], mult=mult, shift=shift, zero_point=zero_point)
    return TensorSpec(name="x", shape=(None, 1), dtype=dtype, quant=grid, real="float32")


@pytest.fixture(scope="module", params=["generic", "native"])
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    b = GraphBuilder("border", Stage.INTEGER)
    for bits, signed in TYPES.values():
        b.input("x", (BATCH, 1), quant=Quant(bits, signed, (Dyadic(1, 4),)), dtype=f"{'i' if signed else 'u'}{bits}")
    functions = border_functions(b.graph([]), 1)
    assert set(functions) == {*(f"quantize_{dtype}" for dtype in TYPES), ENCODE, DECODE, CALL}
    isa = available()[0 if request.param == "generic" else -1]
    path = tmp_path_factory.mktemp("border") / "border.so"
    Compiler().library([Unit(functions, floats=True)], list(functions), isa, path)
    return path


def agree(library: Path, one: TensorSpec, x: NDArray[Any]) -> None:
    got = NativeBorder(library, [one]).quantize(one, x)
    expected = quantize_input(one, x)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert np.array_equal(got, expected)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_ties_and_their_neighbours(library: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(list(TYPES)))
    bits, signed = TYPES[dtype]
    width = data.draw(st.integers(1, 24))
    mult = data.draw(st.integers(1 << (width - 1), (1 << width) - 1)) | 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    one = spec(dtype, mult, data.draw(st.integers(width - 4, width + 20)), data.draw(st.integers(low, high)))
    assert one.quant is not None
    start = data.draw(st.integers(-high - 20, high))
    ties = np.array([float((Fraction(2 * k + 1, 2)) * mult) for k in range(start, start + 300)])
    x = np.ldexp(ties, -one.quant.shift).astype(np.float32)
    neighbours = [np.nextafter(x, np.float32(s * np.inf)) for s in (-1, 1)]
    agree(library, one, np.concatenate([x, *neighbours]).reshape(-1, 1))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=70))
def test_any_reals(library: Path, reals: list[float]) -> None:
    x = np.array(reals, np.float32).reshape(-1, 1)
    for dtype, zero_point in (("uint8", 114), ("int8", -3), ("uint16", 30000)):
        agree(library, spec(dtype, 10000001, 29, zero_point), x)  # type: ignore[arg-type]


def test_grids_narrower_than_their_type_are_clamped(library: Path) -> None:
    agree(library, spec("uint8", 1, 3, 7, bits=4), np.linspace(-3, 3, 200, dtype=np.float32).reshape(-1, 1))


def test_nan_is_refused_wherever_it_is(library: Path) -> None:
    one = spec("uint8", 1, 4, 0)
    for place in (0, 5, 64, 99):
        x = np.zeros((100, 1), np.float32)
        x[place] = np.nan
        with pytest.raises(ConfigError, match="holds NaN"):
            NativeBorder(library, [one]).quantize(one, x)


def test_what_is_not_covered_is_left_to_numpy(library: Path) -> None:
    one = spec("uint8", 1, 4, 9)
    agree(library, one, np.linspace(-2, 20, 50).reshape(-1, 1))
    agree(library, one, np.linspace(-2, 20, 100, dtype=np.float32).reshape(-1, 1)[::2])
    agree(library, one, np.arange(10, dtype=np.uint8).reshape(-1, 1))
    agree(library, spec("uint8", (1 << 40) + 1, 44, 9), np.linspace(-2, 20, 50, dtype=np.float32).reshape(-1, 1))


def test_read_only_arrays_are_quantized(library: Path) -> None:
    x = np.linspace(-2, 20, 50, dtype=np.float32).reshape(-1, 1)
    x.setflags(write=False)
    agree(library, spec("uint8", 1, 4, 9), x)


def test_a_broken_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "border.so").write_bytes(b"no library")
    with pytest.raises(ArtifactError, match="does not load"):
        NativeBorder(tmp_path / "border.so", [])
