"""Real models compiled for the CPU and run through the public session, against the reference, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.artifact.border import quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.runtime import Session
from qcc.verify.interp import evaluate
from qcc_targets.cpu.disassembly import float_instructions

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def cifar_normalized(folder: Path, part: str) -> NDArray[np.float32]:
    images: NDArray[np.float64] = np.load(folder / "cifar10.npz")[part] / 255.0
    normalized: NDArray[np.float64] = (images - MEAN) / STD
    return normalized.transpose(0, 3, 1, 2).astype(np.float32)


def cifar_bytes(folder: Path, part: str) -> NDArray[np.float32]:
    images: NDArray[np.uint8] = np.load(folder / "cifar10.npz")[part]
    return images.astype(np.float32)


def spectrograms(folder: Path, part: str) -> NDArray[np.float32]:
    data = np.load(folder / "kws.npz")
    real: NDArray[np.float64] = (data[part].astype(np.float64) - data["input_zero_point"]) * data["input_scale"]
    return real.astype(np.float32)


MODELS: dict[str, tuple[str, Callable[[Path, str], NDArray[np.float32]]]] = {
    "resnet20_cifar10": ("input", cifar_normalized),
    "mlperf_tiny_ic_resnet8": ("input", cifar_bytes),
    "kws_dscnn": ("input", spectrograms),
}


@pytest.mark.parametrize(
    ("name", "isa"),
    [("resnet20_cifar10", "native"), ("mlperf_tiny_ic_resnet8", "native"), ("kws_dscnn", "generic")],
)
def test_the_artifact_computes_what_the_reference_does(name: str, isa: str, data_dir: Path, tmp_path: Path) -> None:
    source, load = MODELS[name]
    arrays: dict[str, Any] = {source: load(data_dir / "eval", "calib_x")[:32]}
    np.savez(tmp_path / "calib.npz", **arrays)
    fields: dict[str, Any] = {
        "model": data_dir / "models" / f"{name}.onnx",
        "output": tmp_path / "out",
        "data": tmp_path / "calib.npz",
        "target": {"name": "cpu", "options": {"isa": isa}},
    }
    artifact = read_artifact(compile_model(make_config(fields)).path)
    session = Session(artifact)
    x = load(data_dir / "eval", "test_x")[:40]
    codes = quantize_input(session.inputs[0], x)
    expected = evaluate(read_graph(artifact.files), {source: codes})
    got = session.run({source: x}, raw=True)
    assert {k: int((got[k] != expected[k]).sum()) for k in expected} == dict.fromkeys(expected, 0)
    (library,) = (path for name, path in artifact.files.items() if name.startswith("device/network-"))
    assert float_instructions(library) == []
