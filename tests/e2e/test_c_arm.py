"""The C target on Arm: cross-compiled, run under an emulator, bit for bit the reference's results."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest

from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.verify.interp import evaluate
from qcc_targets.c.target import CTarget

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
COMPILER = "arm-linux-gnueabihf-gcc"
EMULATOR = "qemu-arm"
Qcc = Callable[..., Any]
IMAGES = 40
GRID = Quant(8, False, (Dyadic(1, 4),), 3)


@pytest.fixture
def arm() -> ModuleType:
    """The script that builds for Arm and emulates it, as a module; skips where its tools are absent."""
    path = Path(__file__).parents[1] / "bench" / "emulated.py"
    spec = importlib.util.spec_from_file_location("emulated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if (complaint := module.missing()) is not None:
        pytest.skip(complaint)
    return module


class Layers:
    """Integer layers whose random requantization spreads their results over all codes."""

    def __init__(self) -> None:
        self.b = GraphBuilder("arm", Stage.INTEGER)
        self.rng = np.random.default_rng(11)

    def conv(self, x: Value, shape: tuple[int, ...], residual: Value | None = None, **changed: Any) -> Value:
        attrs = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1} | changed
        return self._layer("iconv2d", x, shape, residual, attrs)

    def dense(self, x: Value, shape: tuple[int, ...]) -> Value:
        return self._layer("idense", x, shape, None, {})

    def _layer(
        self, kind: str, x: Value, shape: tuple[int, ...], residual: Value | None, attrs: Mapping[str, Any]
    ) -> Value:
        w = self.b.constant(self.rng.integers(-127, 128, shape).astype(np.int8), "w")
        gain = 200 * 2**32 / (75 * 73 * np.prod(shape[1:]) ** 0.5)
        m = self.b.constant((self.rng.uniform(0.3, 1, shape[0]) * gain).astype(np.int32), "m")
        c = self.b.constant(self.rng.integers(20 << 32, 200 << 32, shape[0]), "c")
        extra = [] if residual is None else [residual, self.b.constant(np.full(shape[0], 1 << 30, np.int32), "mr")]
        return self.b.op(kind, [x, w, m, c, *extra], quant=GRID, shift=32, qmin=0, qmax=255, **attrs)


def branches() -> Graph:
    """A depthwise convolution with strides, a residual, a concatenation and a dense layer."""
    n = Layers()
    image = n.b.input("image", (BATCH, 5, 9, 7), "u8", GRID)
    stem = n.conv(image, (6, 5, 3, 3), pads=(1, 1, 1, 1))
    depthwise = n.conv(stem, (6, 1, 3, 3), pads=(1, 1, 1, 1), groups=6)
    joined = n.conv(depthwise, (6, 6, 1, 1), residual=stem)
    left = n.conv(joined, (6, 1, 3, 3), pads=(1, 1, 1, 1), strides=(2, 2), groups=6)
    right = n.conv(joined, (3, 6, 1, 1), strides=(2, 2))
    both = n.b.op("concat", [left, right], quant=GRID, axis=1)
    flat = n.b.op("reshape", [both], quant=GRID, shape=(BATCH, 9 * 5 * 4))
    return n.b.graph([n.dense(flat, (7, 9 * 5 * 4))])


@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_branches_give_the_reference_bits(arm: ModuleType, optimize: Literal["speed", "size"], tmp_path: Path) -> None:
    graph = branches()
    CTarget(optimize=optimize).build(graph, PassContext(), tmp_path)
    codes = np.random.default_rng(3).integers(0, 256, (20, 5, 9, 7)).astype(np.uint8)
    expected = evaluate(graph, {"image": codes})[graph.outputs[0].name]
    assert len(np.unique(expected)) > 40
    for flags in arm.FLAGS.values():
        assert np.array_equal(arm.run_emulated(graph, tmp_path, codes, flags), expected)


def test_the_digits_network_gives_the_reference_bits(arm: ModuleType, tmp_path: Path) -> None:
    fields = {
        "model": QUICKSTART / "digits.onnx",
        "output": tmp_path / "digits",
        "data": {"path": str(QUICKSTART / "calibration.npz"), "samples": 64},
        "target": {"name": "c", "options": {"optimize": "size"}},
    }
    graph = read_graph(read_artifact(compile_model(make_config(fields)).path).files)
    quant = graph.inputs[0].type.quant
    assert quant is not None
    images = np.load(QUICKSTART / "evaluation.npz")["image"][:IMAGES].astype(np.float64)
    codes = np.clip(np.rint(images / float(quant.scale[0])) + quant.zero_point, 0, 255).astype(np.uint8)
    expected = evaluate(graph, {"image": codes})["logits"]
    assert np.array_equal(arm.run_emulated(graph, tmp_path / "digits" / "device", codes), expected)


def test_inspect_reports_rom_and_ram(arm: ModuleType, run_qcc: Qcc, tmp_path: Path) -> None:
    out = tmp_path / "digits"
    arguments = (QUICKSTART / "digits.onnx", "-d", QUICKSTART / "calibration.npz", "-t", "c", "-o", out)
    assert run_qcc("compile", *arguments, "-O", "optimize=size", "-O", f"cross={arm.CORTEX_M4}").code == 0
    memory = json.loads(run_qcc("inspect", out, "--json").out)["memory"]
    header = (out / "device" / "network.h").read_text()
    assert f"#define DIGITS_ARENA_BYTES {memory['arena']}\n" in header
    assert f"#define DIGITS_CONSTANT_BYTES {memory['constants']}\n" in header
    command, *flags = memory["compiler"].split()
    subprocess.run([command, *flags, "-c", "network.c", "-o", "network.o"], cwd=out / "device", check=True)
    sizes = subprocess.run(
        ["arm-linux-gnueabihf-size", "network.o"], cwd=out / "device", capture_output=True, text=True
    )
    text, _, bss = map(int, sizes.stdout.splitlines()[1].split()[:3])
    assert memory["code"] + memory["constants"] == text
    assert memory["arena"] == bss
    assert 0 < memory["stack"] < 1024
    (out / "device" / "network.o").unlink()
    shown = run_qcc("inspect", out).out
    assert ["ROM", "code", str(memory["code"])] in [line.split() for line in shown.splitlines()]
    assert "code and stack by arm-linux-gnueabihf-gcc -Os -mcpu=cortex-m4" in shown
