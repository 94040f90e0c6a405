"""``--device``: a CUDA artifact verified without a GPU, and devices that do not exist."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Qcc = Callable[..., Any]


@pytest.fixture(scope="module")
def artifact(tiny: Path) -> Path:
    from qcc.config import make_config
    from qcc.driver import compile_model

    target = {"name": "cuda", "options": {"arch": "compute_75"}}
    fields = {"model": tiny / "tiny.onnx", "output": tiny / "gpu.qcc", "data": tiny / "data.npz", "target": target}
    return compile_model(make_config(fields)).path


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")
def test_verify_runs_the_kernels_on_the_host(run_qcc: Qcc, artifact: Path, tiny: Path) -> None:
    given = ("verify", artifact, "--data", tiny / "data.npz", "--device", "simt-racecheck", "--json")
    result = run_qcc(*given)
    assert result.code == 0, result.err
    engines = {e["name"]: e for e in json.loads(result.out)["engines"]}
    assert engines["artifact, cuda, device simt-racecheck"]["differing"] == 0
    assert engines["artifact, cuda, device simt-racecheck"]["elements"] == 96


def test_without_a_driver_or_a_compiler_one_line_says_so(
    run_qcc: Qcc, artifact: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcc.runtime import cuda_driver
    from qcc_targets.cuda import compiler

    monkeypatch.setattr(cuda_driver, "LIBRARY", "libnosuchdriver.so.1")
    result = run_qcc("run", artifact, "--data", tiny / "data.npz")
    assert result.code == 7 and "no NVIDIA driver: libnosuchdriver.so.1 does not load" in result.complaint
    monkeypatch.setattr(compiler, "_WHEEL", "nvidia.no_such_wheel")
    monkeypatch.setattr(compiler, "_LIBRARIES", ("libnosuchcompiler.so.1",))
    given = ("-d", tiny / "data.npz", "-t", "cuda", "-o", tmp_path / "out")
    result = run_qcc("compile", tiny / "tiny.onnx", *given)
    assert result.code == 6 and "no CUDA compiler: the cuda target needs NVRTC" in result.complaint


def test_unknown_devices_are_named(run_qcc: Qcc, artifact: Path, compiled: Path, tiny: Path) -> None:
    data = ("--data", tiny / "data.npz")
    result = run_qcc("run", artifact, *data, "--device", "tpu")
    assert result.code == 2
    assert "'cuda' knows no device 'tpu': devices are numbered; others: simt, simt-racecheck" in result.complaint
    result = run_qcc("run", compiled, *data, "--device", "simt")
    assert result.code == 2 and "'ref' knows no device 'simt'" in result.complaint
    result = run_qcc("run", compiled, *data, "--device", "1")
    assert result.code == 2 and "the backend 'ref' takes no option 'device'" in result.complaint


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")
def test_bench_times_a_named_device(run_qcc: Qcc, artifact: Path) -> None:
    result = run_qcc("bench", artifact, "--device", "simt", "--rounds", 1, "--weights", "warm", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["results"][0]["seconds"]["qcc integer"]["best"] > 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on the PATH")
def test_fuzz_takes_a_device(run_qcc: Qcc) -> None:
    target = ("--target", "cuda", "-O", "arch=compute_75", "--device", "simt")
    result = run_qcc("fuzz", "--count", 1, "--seed", 5, *target, "--json")
    assert result.code == 0, result.err
    assert run_qcc("fuzz", "--count", 1, "--target", "ref", "--device", "simt").code == 2
