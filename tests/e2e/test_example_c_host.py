"""The C host: the digits network without Python, for this machine and for emulated AArch64."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.runtime.program import PROGRAM, Program
from qcc.verify.interp import evaluate
from qcc_targets.cpu.isa import resolve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICKSTART = EXAMPLES / "quickstart"
IMAGES = 40


def tools(machine: str) -> tuple[str, list[str]]:
    """The compiler for ``machine``, and what runs its programs here; skips where there are none."""
    if machine == platform.machine():
        compiler, runner = "cc", []
    else:
        compiler, runner = f"{machine}-linux-gnu-gcc", [f"qemu-{machine}", "-L", f"/usr/{machine}-linux-gnu"]
    for name in (compiler, *runner[:1]):
        if shutil.which(name) is None:
            pytest.skip(f"no {name} here")
    return compiler, runner


@pytest.mark.parametrize("isa", ["native", "neon", "dotprod", "i8mm"])
def test_the_host_gives_the_reference_bits(isa: str, tmp_path: Path) -> None:
    compiler, runner = tools(resolve(isa).machine)
    fields = {
        "model": QUICKSTART / "digits.onnx",
        "output": tmp_path / "digits",
        "data": {"path": str(QUICKSTART / "calibration.npz"), "samples": 64},
        "target": {"name": "cpu", "options": {"isa": isa}},
    }
    artifact = read_artifact(compile_model(make_config(fields)).path)
    device = tmp_path / "digits" / "device"
    program = Program.from_bytes((device / PROGRAM).read_bytes())
    (level,) = program.levels
    assert program.machine == resolve(isa).machine and level.border is not None
    host = tmp_path / "host"
    source: list[str | Path] = [
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        device,
        EXAMPLES / "c_host" / "main.c",
        "-o",
        host,
    ]
    libraries: list[str | Path] = ["-L", device, f"-l:{level.library}", f"-l:{level.border}", f"-Wl,-rpath,{device}"]
    subprocess.run([compiler, *source, *libraries], check=True)
    images = np.load(QUICKSTART / "evaluation.npz")["image"][:IMAGES].astype("<f4")
    done = subprocess.run([*runner, host, device / level.constants], input=images.tobytes(), capture_output=True)
    assert done.returncode == 0, done.stderr
    rows = np.array([line.split() for line in done.stdout.decode().splitlines()], np.int64)
    graph = read_graph(artifact.files)
    scale = float(graph.inputs[0].type.quant.scale[0]) if graph.inputs[0].type.quant else 1.0
    codes = np.clip(np.rint(images.astype(np.float64) / scale), 0, 255).astype(np.uint8)
    expected = evaluate(graph, {"image": codes})["logits"]
    assert np.array_equal(rows[:, 1:], expected)
    assert np.array_equal(rows[:, 0], expected.argmax(axis=1))


def test_the_script_takes_an_instruction_set() -> None:
    script = (EXAMPLES / "c_host" / "run.sh").read_text()
    assert '--isa "$isa"' in script and subprocess.run(["bash", "-n", EXAMPLES / "c_host" / "run.sh"]).returncode == 0
