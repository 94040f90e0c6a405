"""The quickstart's network as hardware: compiled, and proved in simulation on real images, by the usual commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc_targets.fpga.tools import VERILATOR

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
Qcc = Callable[..., Any]


def test_digits_in_hardware(run_qcc: Qcc, tmp_path: Path) -> None:
    if VERILATOR.find() is None:
        pytest.skip(f"no verilator here: {VERILATOR.install}")
    shutil.copy(QUICKSTART / "digits.onnx", tmp_path)
    evaluation = np.load(QUICKSTART / "evaluation.npz")
    np.savez(tmp_path / "some.npz", image=evaluation["image"][:50], labels=evaluation["labels"][:50])
    out = tmp_path / "digits"
    result = run_qcc(
        "compile",
        *(tmp_path / "digits.onnx", "-d", QUICKSTART / "calibration.npz", "-t", "fpga", "-O", "cycles=5000", "-o", out),
    )
    assert result.code == 0, result.err
    described = json.loads((out / "device" / "network.json").read_text())
    assert described["cycles"] <= 5000
    assert (out / "device" / described["sources"][-1]).is_file()
    verified = run_qcc("verify", out, "-d", tmp_path / "some.npz", "--json")
    assert verified.code == 0, verified.err
    engines = {e["name"]: (e["elements"], e["differing"]) for e in json.loads(verified.out)["engines"]}
    assert engines["artifact, fpga"] == (500, 0)
