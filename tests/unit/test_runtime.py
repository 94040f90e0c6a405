"""Sessions: what they accept, what they refuse, and that threads may share one."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.artifact.border import dequantize_output, quantize_input
from qcc.artifact.manifest import Grid, Manifest, TensorSpec
from qcc.errors import ArtifactError, ConfigError, PluginError
from qcc.ir.graph import Graph
from qcc.runtime import backend as backends
from qcc.runtime import load
from qcc.verify.interp import evaluate

FIELDS = ("inputs", "outputs")
WriteSmall = Callable[..., Manifest]


@pytest.fixture
def artifact(tmp_path: Path, write_small: WriteSmall) -> Path:
    write_small(tmp_path / "small.qcc")
    return tmp_path / "small.qcc"


def codes(samples: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (samples, 4), np.uint8)


def test_codes_in_codes_out(artifact: Path, integer_graph: Graph) -> None:
    x = codes(7)
    got = load(artifact).run({"x": x}, raw=True)
    assert got["y"].dtype == np.int32
    np.testing.assert_array_equal(got["y"], evaluate(integer_graph, {"x": x})["y"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", ">f8"])
def test_reals_in_reals_out(artifact: Path, dtype: str) -> None:
    x = codes(5)
    session = load(artifact, threads=2)
    real = ((x.astype(np.float64) - 3) / 8).astype(dtype)
    y = session.run({"x": real})["y"]
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, session.run({"x": x}, raw=True)["y"] / np.float32(16))


def misaligned(x: NDArray[Any]) -> NDArray[Any]:
    room = np.zeros(x.nbytes + 65, np.uint8)
    start = -room.ctypes.data % 64 + 1
    copy = room[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def strided(x: NDArray[Any]) -> NDArray[Any]:
    room = np.zeros((2 * len(x), 3 * x.shape[1]), x.dtype)
    room[::2, ::3] = x
    return room[::2, ::3]


@pytest.mark.parametrize("layout", [misaligned, strided, np.asfortranarray, lambda x: x[::-1].copy()[::-1]])
def test_any_memory_layout(artifact: Path, layout: Callable[[Any], Any]) -> None:
    x = codes(6)
    session = load(artifact)
    want = session.run({"x": x}, raw=True)["y"]
    np.testing.assert_array_equal(session.run({"x": layout(x)}, raw=True)["y"], want)
    real = x.astype(np.float32)
    np.testing.assert_array_equal(session.run({"x": layout(real)})["y"], session.run({"x": real})["y"])


def test_backends_get_contiguous_aligned_arrays(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[NDArray[Any]] = []

    class Spy:
        def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int) -> None:
            assert all(p.is_file() for p in files.values())

        def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
            assert batch == len(inputs["x"])
            seen.append(inputs["x"])
            return {"y": np.zeros((batch, 20), np.int32)}

    monkeypatch.setattr(backends, "load", lambda group, name: Spy)
    session = load(artifact)
    for x in (codes(3), misaligned(codes(3)), strided(codes(3)), codes(3).astype(np.float32)):
        session.run({"x": x})
    assert all(x.flags.c_contiguous and x.ctypes.data % 64 == 0 and x.dtype == np.uint8 for x in seen)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no array for the input 'x'"),
        ({"z": codes(1), "x": codes(1)}, "no input is called 'z'; inputs: x"),
        ({"x": codes(1)[0]}, r"shape \[4\]; it takes x uint8\[N, 4\]"),
        ({"x": np.zeros((2, 5), np.uint8)}, r"shape \[2, 5\]"),
        ({"x": np.zeros((0, 4), np.uint8)}, "is empty"),
        ({"x": np.zeros((1, 4), np.int8)}, "dtype int8; it takes uint8 codes or float32"),
        ({"x": np.zeros((1, 4), np.int64)}, "dtype int64"),
        ({"x": np.array([["a"] * 4])}, "dtype <U1"),
        ({"x": np.full((1, 4), np.nan, np.float32)}, "holds NaN"),
    ],
)
def test_refused_inputs(artifact: Path, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(artifact).run(inputs)


def test_infinities_saturate(artifact: Path) -> None:
    session = load(artifact)
    infinite = np.array([[np.inf, -np.inf, 0, 0]], np.float32)
    want = session.run({"x": np.array([[255, 0, 3, 3]], np.uint8)})["y"]
    np.testing.assert_array_equal(session.run({"x": infinite})["y"], want)


def test_threads_share_a_session(artifact: Path) -> None:
    session = load(artifact)
    batches = [codes(n) for n in range(1, 33)]
    want = [session.run({"x": x}, raw=True)["y"] for x in batches]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda x: session.run({"x": x}, raw=True)["y"], batches * 4))
    for a, b in zip(got, want * 4, strict=True):
        np.testing.assert_array_equal(a, b)


def spec(**changes: Any) -> TensorSpec:
    grid = Grid(bits=8, mult=3, shift=5, zero_point=-7)
    return TensorSpec.model_validate(
        {"name": "x", "shape": (None, 2), "dtype": "int8", "quant": grid, "real": "float32", **changes}
    )


def test_border_rounds_half_to_even_and_saturates() -> None:
    steps = np.array([[0.5, 1.5], [-0.5, -1.5], [500, -500], [0.25, 2.5]])
    got = quantize_input(spec(), steps * (3 / 32))
    np.testing.assert_array_equal(got, [[-7, -5], [-7, -9], [127, -128], [-7, -5]])


def test_border_of_narrow_grids_checks_codes() -> None:
    narrow = spec(quant=Grid(bits=4, mult=1, shift=0, zero_point=0))
    np.testing.assert_array_equal(quantize_input(narrow, np.array([[-9.0, 9.0]])), [[-8, 7]])
    with pytest.raises(ConfigError, match=r"codes outside \[-8, 7\]"):
        quantize_input(narrow, np.array([[8, 0]], np.int8))


def test_outputs_without_grid_stay_codes() -> None:
    index = np.array([[3, 1]])
    assert dequantize_output(spec(dtype="int64", quant=None, real=None), index) is index


def test_fixed_leading_size_runs_several_times(
    tmp_path: Path, write_small: WriteSmall, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    class Fixed:
        def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int) -> None: ...

        def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
            assert inputs["x"].shape == (2, 4)
            calls.append(batch)
            return {"y": np.repeat(inputs["x"].astype(np.int32), 5, axis=1)}

    monkeypatch.setattr(backends, "load", lambda group, name: Fixed)
    manifest = write_small(tmp_path / "a")
    fixed = {k: tuple(s.model_copy(update={"shape": (2, *s.shape[1:])}) for s in getattr(manifest, k)) for k in FIELDS}
    write_small(tmp_path / "b", **fixed)
    session = load(tmp_path / "b")
    x = codes(6)
    np.testing.assert_array_equal(session.run({"x": x}, raw=True)["y"], np.repeat(x, 5, axis=1))
    assert calls == [1, 1, 1]
    with pytest.raises(ConfigError, match=r"shape \[5, 4\]"):
        session.run({"x": codes(5)})


def test_unknown_backend(tmp_path: Path, write_small: WriteSmall) -> None:
    write_small(tmp_path / "a", backend="abacus")
    with pytest.raises(PluginError, match="no 'abacus'"):
        load(tmp_path / "a")


def test_raising_backend(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(*args: object) -> None:
        raise ValueError("no device")

    monkeypatch.setattr(backends, "load", lambda group, name: explode)
    with pytest.raises(PluginError, match="backend 'ref' raised ValueError: no device"):
        load(artifact)


def test_hashes_are_checked_before_a_backend_loads(
    tmp_path: Path, write_small: WriteSmall, monkeypatch: pytest.MonkeyPatch
) -> None:
    def touched(*args: object) -> None:
        raise AssertionError("the backend was loaded")

    monkeypatch.setattr(backends, "load", touched)
    write_small(tmp_path / "a")
    graph = tmp_path / "a" / "graph.qir"
    graph.write_bytes(graph.read_bytes().replace(b"idense", b"odense"))
    with pytest.raises(ArtifactError, match=r"graph\.qir was changed"):
        load(tmp_path / "a")


def test_threads_must_be_positive(artifact: Path) -> None:
    with pytest.raises(ConfigError, match="threads"):
        load(artifact, threads=0)


def test_runtime_imports_no_compiler() -> None:
    script = (
        "import sys, qcc.runtime\n"
        "heavy = {'onnx', 'onnxruntime', 'tvm', 'networkx', 'safetensors', 'yaml', 'typer', 'PIL'}\n"
        "print(sorted((heavy | {'qcc.ir', 'qcc.passmgr'}) & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
