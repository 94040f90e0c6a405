"""Weights and activations below 8 bits, from the command line to every target: nothing differs, every byte counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from qcc.artifact.contents import WEIGHTS
from qcc.artifact.store import read_artifact

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
MODEL = QUICKSTART / "digits.onnx"
PIPELINE = "fold-batch-norm, canonicalize, equalize, calibrate, quantize, round-weights, bias-correct, dyadic"


def compiled(run_qcc: Callable[..., Any], out: Path, target: str, weights: int, activations: int) -> None:
    options = {"weight_bits": weights, "activation_bits": activations, "end_bits": weights}
    flags = [f for name, value in options.items() for f in ("-P", f"quantize.{name}={value}")]
    data = QUICKSTART / "calibration.npz"
    done = run_qcc("compile", MODEL, "-d", data, "-o", out, "-t", target, "--pipeline", PIPELINE, *flags)
    assert done.code == 0, done.err


@pytest.mark.parametrize(("target", "weights", "activations"), [("cpu", 4, 4), ("c", 3, 8), ("ref", 2, 5)])
def test_nothing_differs(
    run_qcc: Callable[..., Any], tmp_path: Path, target: str, weights: int, activations: int
) -> None:
    out = tmp_path / "net.qcc"
    compiled(run_qcc, out, target, weights, activations)
    done = run_qcc("verify", out, "--model", MODEL, "--data", QUICKSTART / "evaluation.npz", "--json")
    assert done.code == 0, done.out
    engines = json.loads(done.out)["engines"]
    assert len(engines) == 2
    assert all(e["differing"] == 0 and e["elements"] == 5000 for e in engines)


def test_sizes_are_said_to_the_byte(run_qcc: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "net.qcc"
    compiled(run_qcc, out, "ref", 4, 8)
    said = json.loads(run_qcc("inspect", out, "--json").out)["weights"]
    artifact = read_artifact(out)
    assert said == json.loads(artifact.read("report.json"))["weights"]
    stored = [a.nbytes for a in safetensors.numpy.load(artifact.read(WEIGHTS)).values()]
    assert {w["bits"] for w in said} == {4}
    assert all(w["bytes"] in stored for w in said)
    assert "all weights" in run_qcc("inspect", out, "--layers").out
