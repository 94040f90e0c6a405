"""The whole road on a real model, for the reference target; the compiled library has tests of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Qcc = Callable[..., Any]


@pytest.fixture
def kws(data_dir: Path, tmp_path: Path) -> Path:
    """A folder with calibration.npz and evaluation.npz of the keyword model."""
    raw = np.load(data_dir / "eval" / "kws.npz")

    def real(name: str) -> NDArray[np.float32]:
        shifted: NDArray[np.float32] = raw[name].astype(np.float32) - np.float32(raw["input_zero_point"])
        return shifted * np.float32(raw["input_scale"])

    np.savez(tmp_path / "calibration.npz", input=real("calib_x"))
    np.savez(tmp_path / "evaluation.npz", input=real("test_x"), labels=raw["test_y"].astype(np.int64))
    return tmp_path


def test_keyword_spotting(run_qcc: Qcc, data_dir: Path, kws: Path) -> None:
    model = data_dir / "models" / "kws_dscnn.onnx"
    out = kws / "kws.qcc"
    result = run_qcc("compile", model, "-d", kws / "calibration.npz", "-t", "ref", "-o", out, "--cache", kws / "cache")
    assert result.code == 0, result.err
    again = run_qcc(
        "compile", model, "-d", kws / "calibration.npz", "-t", "ref", "-o", kws / "b.qcc", "--cache", kws / "cache"
    )
    assert again.code == 0, again.err
    assert out.read_bytes() == (kws / "b.qcc").read_bytes()
    report = json.loads(run_qcc("verify", out, "-m", model, "-d", kws / "evaluation.npz", "--json").out)
    (logits,) = report["outputs"]
    assert logits["sqnr_db"] > 33
    assert logits["agreement"] > 0.98
    assert logits["top1_integer"] > 0.91
    assert [e["differing"] for e in report["engines"]] == [0, 0]
