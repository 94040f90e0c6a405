"""The quickstart: its files, and every command of ``run.sh``."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcc.runtime import load

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
Qcc = Callable[..., Any]


def commands() -> list[list[str]]:
    """The commands that ``run.sh`` shows and runs."""
    lines = (QUICKSTART / "run.sh").read_text(encoding="utf-8").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("run ")]


def test_network_has_what_real_ones_have() -> None:
    model = onnx.load(QUICKSTART / "digits.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = {node.op_type for node in model.graph.node}
    assert {"Conv", "BatchNormalization", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Gemm"} <= kinds


def test_data_are_apart_and_named_like_the_input() -> None:
    calibration, evaluation = (np.load(QUICKSTART / f"{name}.npz") for name in ("calibration", "evaluation"))
    assert calibration.files == ["image"]
    assert sorted(evaluation.files) == ["image", "labels"]
    seen = {image.tobytes() for image in calibration["image"]}
    assert not any(image.tobytes() in seen for image in evaluation["image"])


def test_every_command_of_run_sh(run_qcc: Qcc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in QUICKSTART.iterdir():
        if path.suffix in (".onnx", ".npz", ".yaml", ".py") and path.name != "answers.npz":
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    outputs = []
    for program, *arguments in commands():
        if program == "qcc":
            result = run_qcc(*arguments)
            assert result.code == 0, result.err
            outputs.append(result.out)
        else:
            assert program == "python"
            shown = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
            outputs.append(shown.stdout)
    assert len(outputs) == 4
    right = re.search(r"(\d+) of 500 digits read correctly", outputs[-1])
    assert right is not None
    assert int(right[1]) >= 0.97 * 500
    session = load(tmp_path / "digits.qcc")
    assert session.manifest.target.name == "cpu"
    answers = np.load(tmp_path / "answers.npz")["logits"]
    images = np.load(tmp_path / "evaluation.npz")["image"]
    np.testing.assert_array_equal(session.run({"image": images})["logits"], answers)
