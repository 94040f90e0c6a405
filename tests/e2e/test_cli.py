"""Every command, on a tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from qcc.artifact.store import read_artifact
from qcc.commands.bench import WEIGHTS
from qcc.ir.text import parse
from qcc.runtime import load

Qcc = Callable[..., Any]


def contents(path: Path) -> dict[str, bytes]:
    return {name: file.read_bytes() for name, file in read_artifact(path).files.items()}


def test_compile_writes_what_it_says(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.qcc"
    result = run_qcc("compile", tiny / "tiny.onnx", "-d", tiny / "data.npz", "-t", "ref", "-o", out, "--json")
    assert result.code == 0, result.err
    summary = json.loads(result.out)
    assert summary["path"] == str(out)
    assert summary["peak_rss_bytes"] > 1 << 20
    assert summary["total_seconds"] == pytest.approx(sum(summary["seconds"].values()))
    assert {"import", "data", "calibrate", "dyadic", "build", "write"} <= set(summary["seconds"])
    manifest = summary["manifest"]
    assert manifest["model"] == "tiny"
    assert "canonicalize" in manifest["pipeline"]
    assert [s["name"] for s in manifest["inputs"] + manifest["outputs"]] == ["image", "scores"]
    files = contents(out)
    assert set(files) == {"config.yaml", "graph.qir", "model.int.onnx", "report.json", "weights.safetensors"}
    onnx.checker.check_model(onnx.load_model_from_string(files["model.int.onnx"]))
    report = json.loads(files["report.json"])
    assert report["calibration"]["samples"] == 32
    assert all(c["accumulator"]["bits"] <= 32 for c in report["certificates"].values())


@pytest.mark.parametrize(("target", "form"), [("ref", "net.qcc"), ("ref", "net"), ("cpu", "net.qcc")])
def test_two_compilations_give_identical_bytes(
    run_qcc: Qcc, tiny: Path, tmp_path: Path, target: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        result = run_qcc("compile", tiny / "tiny.onnx", "-d", tiny / "data.npz", "-t", target, "-o", form)
        assert result.code == 0, result.err
    a, b = tmp_path / "a" / form, tmp_path / "b" / form
    assert read_artifact(a).manifest == read_artifact(b).manifest
    if a.is_file():
        assert a.read_bytes() == b.read_bytes()
    assert contents(a) == contents(b)


def test_flags_win_over_the_file(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    config = tmp_path / "qcc.yaml"
    config.write_text(f"model: {tiny / 'tiny.onnx'}\noutput: net.qcc\ndata: {tiny / 'data.npz'}\ntarget: cpu\n")
    result = run_qcc(
        "compile", "-c", config, "-t", "ref", "--method", "minmax", "-n", 8, "-P", "quantize.exact_inputs=false"
    )
    assert result.code == 0, result.err
    artifact = read_artifact(tmp_path / "net.qcc")
    assert artifact.manifest.target.name == "ref"
    assert "calibrate{method=minmax, samples=8}" in artifact.manifest.pipeline
    assert "quantize{exact_inputs=false}" in artifact.manifest.pipeline
    assert "data.npz" in artifact.read("config.yaml").decode()
    assert str(tiny) not in artifact.read("config.yaml").decode()


def test_default_output_is_named_after_the_model(
    run_qcc: Qcc, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_qcc("compile", tiny / "tiny.onnx", "-d", tiny / "data.npz", "-t", "ref").code == 0
    assert load("tiny.qcc").manifest.model == "tiny"


def test_fixed_batch(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.qcc"
    arguments = (tiny / "tiny.onnx", "-d", tiny / "data.npz", "-t", "ref", "--batch", 4, "-o", out)
    assert run_qcc("compile", *arguments).code == 0
    session = load(out)
    assert session.inputs[0].shape == (4, 1, 8, 8)
    assert session.run({"image": np.zeros((8, 1, 8, 8), np.float32)})["scores"].shape == (8, 3)


def test_run_writes_reproducible_answers(run_qcc: Qcc, compiled: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.npz"
    result = run_qcc("run", compiled, "-d", tiny / "data.npz", "-o", out, "--batch", 5)
    assert result.code == 0, result.err
    assert "top-1" in result.out
    first = out.read_bytes()
    data = np.load(tiny / "data.npz")
    with np.load(out) as answers:
        np.testing.assert_array_equal(answers["scores"], load(compiled).run({"image": data["image"]})["scores"])
    assert "exists" in run_qcc("run", compiled, "-d", tiny / "data.npz", "-o", out).complaint
    assert run_qcc("run", compiled, "-d", tiny / "data.npz", "-o", out, "--force").code == 0
    assert out.read_bytes() == first


def test_run_raw_as_json(run_qcc: Qcc, compiled: Path, tiny: Path) -> None:
    result = run_qcc("run", compiled, "-d", tiny / "data.npz", "--raw", "-n", 3, "--json")
    report = json.loads(result.out)
    assert report["outputs"] == {"scores": {"shape": [3, 3], "dtype": "int32"}}
    assert 0 <= report["top1"] <= 1


def test_run_on_a_folder_of_images(run_qcc: Qcc, compiled: Path, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (16, 16), 80 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "readme.txt").write_text("hello")
    result = run_qcc("run", compiled, "-d", tmp_path, "--scale", "1/255", "--mean", "0.5", "--json")
    assert json.loads(result.out)["outputs"]["scores"]["shape"] == [3, 3]
    assert "skipped 1 file(s)" in result.complaint


def test_verify_finds_the_model_and_compares(run_qcc: Qcc, compiled: Path, tiny: Path) -> None:
    result = run_qcc("verify", compiled, "-d", tiny / "data.npz", "--layers", "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["samples"] == 32
    assert report["outputs"][0]["sqnr_db"] > 20
    assert [e["differing"] for e in report["engines"]] == [0, 0]
    assert "relu" in [row["value"] for row in report["layers"]]
    text = run_qcc("verify", compiled, "-d", tiny / "data.npz", "--layers")
    assert text.code == 0
    assert "onnxruntime, integer graph" in text.out
    assert "the layers that lose most" in text.out


def test_verify_fails_when_integers_differ(
    run_qcc: Qcc, compiled: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qcc.runtime.session import Session

    run = Session.run

    def off_by_one(self: Session, inputs: Any, *, raw: bool = False) -> Any:
        return {name: a + (np.arange(a.size).reshape(a.shape) == 0) for name, a in run(self, inputs, raw=raw).items()}

    monkeypatch.setattr(Session, "run", off_by_one)
    result = run_qcc("verify", compiled, "-d", tiny / "data.npz")
    assert result.code == 8
    assert result.complaint == "qcc: executions differ from the reference: artifact, ref in 1 of 96 elements"
    assert "against the numpy reference" in result.out


def test_verify_wants_the_very_model(run_qcc: Qcc, compiled: Path, tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny / "tiny.onnx")
    model.graph.initializer[1].raw_data = bytes(16)
    onnx.save(model, tmp_path / "tiny.onnx")
    result = run_qcc("verify", compiled, "-d", tiny / "data.npz", "-m", tmp_path / "tiny.onnx")
    assert result.code == 2
    assert "its sha256 differs" in result.complaint


def test_inspect(run_qcc: Qcc, compiled: Path, tiny: Path) -> None:
    result = run_qcc("inspect", compiled, "--bounds")
    assert result.code == 0, result.err
    for word in ("stage integer", "iconv2d", "graph.qir", "half_up", "accumulator bits"):
        assert word in result.out
    summary = json.loads(run_qcc("inspect", compiled, "--json").out)
    assert summary["operations"]["iconv2d"] == 1
    assert summary["manifest"]["schema_version"] == 1
    assert "stage float" in run_qcc("inspect", tiny / "tiny.onnx").out


def test_opt_on_a_model_and_on_text(run_qcc: Qcc, tiny: Path, tmp_path: Path) -> None:
    graph = tmp_path / "g.qir"
    graph.write_text('graph @g float(%x: Nx2xf32) {\n  %y: Nx2xf32 = clip(%x) {"lo": 0.0}\n  return %y\n}\n')
    result = run_qcc("opt", graph, "-p", "canonicalize", "--trace")
    assert result.code == 0, result.err
    assert parse(result.out).name == "g"
    assert "canonicalize: 1 operations, now 1" in result.complaint
    out = tmp_path / "o.qir"
    passes = "canonicalize, calibrate{method=minmax}, quantize, dyadic"
    assert run_qcc("opt", tiny / "tiny.onnx", "-p", passes, "-d", tiny / "data.npz", "-o", out).code == 0
    assert "integer(" in out.read_text()


def test_opt_names_the_pass_that_fails(run_qcc: Qcc, tiny: Path) -> None:
    result = run_qcc("opt", tiny / "tiny.onnx", "-p", "canonicalize, calibrate")
    assert result.code == 2
    assert "calibrate needs CalibrationData" in result.complaint


def test_lists(run_qcc: Qcc) -> None:
    assert "calibrate" in run_qcc("passes").out
    assert "mse" in run_qcc("passes", "calibrate").out
    assert {"calibrate", "dyadic"} <= {p["name"] for p in json.loads(run_qcc("passes", "--json").out)}
    assert "ref" in run_qcc("targets").out
    assert json.loads(run_qcc("targets", "ref", "--json").out)["backend"] == "ref"


def test_schema(run_qcc: Qcc, tmp_path: Path) -> None:
    names = run_qcc("schema").out.split()
    assert {"capabilities", "config", "manifest", "verify-report"} <= set(names)
    assert json.loads(run_qcc("schema", "config").out)["title"] == "CompileConfig"
    assert run_qcc("schema", "--write", "--folder", tmp_path).code == 0
    assert {p.name.removesuffix(".json").removesuffix(".schema") for p in tmp_path.iterdir()} == set(names)
    assert run_qcc("schema", "nope").code == 2


def test_doctor(run_qcc: Qcc) -> None:
    report = json.loads(run_qcc("doctor", "--json").out)
    assert report["targets"]["ref"] == "ok"
    if shutil.which("g++"):
        assert report["targets"]["cuda, device simt"] == report["targets"]["cuda, device simt-racecheck"] == "ok"
    assert any("sm_90" in program["purpose"] for program in report["programs"]["cuda"])
    assert report["packages"]["numpy"] == np.__version__
    assert report["system"]["processors"] >= 1


def test_bench(run_qcc: Qcc, compiled: Path, tiny: Path) -> None:
    arguments = ("bench", compiled, "--against", "onnxruntime", "-d", tiny / "data.npz", "--rounds", 2, "-j", "1,2")
    report = json.loads(run_qcc(*arguments, "--json").out)
    assert [(r["threads"], r["weights"]) for r in report["results"]] == [(t, w) for t in (1, 2) for w in WEIGHTS]
    for row in report["results"]:
        assert list(row["seconds"]) == ["qcc integer", "onnxruntime fp32", "onnxruntime int8"]
        assert all(t["best"] <= t["median"] for t in row["seconds"].values())
        assert row["times_qcc"]["qcc integer"] == 1


def test_tune_needs_a_target_that_can_be_tuned(run_qcc: Qcc, compiled: Path) -> None:
    result = run_qcc("tune", compiled)
    assert result.code == 6 and "the target 'ref' has nothing to tune" in result.complaint


def test_bench_without_amx(run_qcc: Qcc, compiled: Path) -> None:
    report = json.loads(run_qcc("bench", compiled, "--no-amx", "--rounds", 1, "--weights", "warm", "--json").out)
    assert not [f for f in report["processor"]["features"] if f.startswith("amx")]
    assert list(report["results"][0]["seconds"]) == ["qcc integer"]


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        ("--against", "tflite", "--against takes onnxruntime, openvino, onnxruntime-gpu, torch; got 'tflite'"),
        ("--weights", "hot", "--weights takes warm, cold; got 'hot'"),
        ("--threads", "1,none", "--threads takes positive numbers separated by commas, got '1,none'"),
    ],
)
def test_bench_refuses(run_qcc: Qcc, compiled: Path, option: str, value: str, complaint: str) -> None:
    result = run_qcc("bench", compiled, option, value)
    assert result.code == 2 and complaint in result.complaint


def test_fuzz(run_qcc: Qcc) -> None:
    result = run_qcc("fuzz", "--count", 3, "--seed", 5, "--target", "ref", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["graphs"] == 3


def test_help_and_version(run_qcc: Qcc) -> None:
    assert run_qcc("--version").out.startswith("qcc 0.")
    for command in (
        "compile",
        "run",
        "verify",
        "inspect",
        "bench",
        "tune",
        "opt",
        "fuzz",
        "passes",
        "targets",
        "schema",
        "doctor",
    ):
        result = run_qcc(command, "--help")
        assert result.code == 0
        assert f"qcc {command}" in result.out


def test_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "qcc", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("qcc ")


def test_interrupt_is_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\ndef data():\n    pathlib.Path('started').touch()\n    time.sleep(60)\n"
    )
    arguments = ["compile", str(tiny / "tiny.onnx"), "-d", "slow.py:data", "-t", "ref", "-o", "net.qcc"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qcc", *arguments], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.decode().strip() == "qcc: interrupted"
    assert not (tmp_path / "net.qcc").exists()


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    command = [sys.executable, "-m", "qcc", "passes"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "float ? float" in result.stdout
