"""The driver: which passes run with which options, and what ends up in the artifact."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from qcc import driver
from qcc.artifact.store import read_artifact
from qcc.config import CompileConfig, make_config
from qcc.driver import compile_model, plan_passes
from qcc.errors import ConfigError, PluginError, TargetError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import Capabilities, Target


class Grumble(Pass):
    """Warns."""

    name: ClassVar[str] = "grumble"
    accepts: ClassVar[Stage] = Stage.INTEGER
    yields: ClassVar[Stage] = Stage.INTEGER

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        ctx.log.warning("%s is a strange name", graph.name)
        ctx.log.info("nobody asked")
        return graph


class Device(Target):
    """A device with a legalization of its own."""

    name: ClassVar[str] = "device"
    backend: ClassVar[str] = "ref"

    ops: frozenset[str] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ops=self.ops)

    def passes(self) -> Sequence[Pass]:
        return (Grumble(),)

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        (out / "code.txt").write_text(f"{ctx.threads} threads\n")
        return [out / "code.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with net.onnx (x [N, 3, 4, 4] → Relu → y) and data.npz of bytes."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 4, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "net.onnx")
    x = np.random.default_rng(0).integers(0, 256, (6, 3, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    return tmp_path


def config(folder: Path, **fields: Any) -> CompileConfig:
    least = {"model": folder / "net.onnx", "output": folder / "net.qcc", "data": folder / "data.npz", "target": "ref"}
    return make_config({**least, **fields})


def spelled(cfg: CompileConfig) -> list[str]:
    return [str(p) for p in plan_passes(cfg)]


def test_options_reach_their_passes(tmp_path: Path) -> None:
    passes = spelled(config(tmp_path, calibration={"method": "minmax"}, passes={"calibrate": {"samples": 4}}))
    assert "calibrate{method=minmax, samples=4}" in passes
    passes = spelled(config(tmp_path, calibration={"method": "minmax"}, passes={"calibrate": {"method": "entropy"}}))
    assert "calibrate{method=entropy}" in passes
    assert not any(p.startswith("byte-input") for p in passes)
    passes = spelled(config(tmp_path, input={"mode": "uint8", "mean": 0.5, "std": [1, 2, 3], "layout": "NHWC"}))
    assert "byte-input{mean=[0.5], std=[1.0, 2.0, 3.0], layout=NHWC}" in passes


def test_explicit_pipelines_take_the_same_options(tmp_path: Path) -> None:
    cfg = config(
        tmp_path,
        pipeline="canonicalize, calibrate{method=minmax, samples=3}, quantize, dyadic",
        calibration={"method": "entropy"},
    )
    assert spelled(cfg) == ["canonicalize", "calibrate{method=entropy, samples=3}", "quantize", "dyadic"]


def test_options_for_absent_passes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'byte-input', which the pipeline does not have"):
        spelled(config(tmp_path, pipeline="canonicalize, calibrate, quantize, dyadic", input="uint8"))
    with pytest.raises(ConfigError, match="'wish'"):
        spelled(config(tmp_path, passes={"wish": {"x": 1}}))


def test_warnings_threads_and_legalization(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "make_target", lambda name, options: Device())
    result = compile_model(config(folder, threads=3))
    assert result.manifest.pipeline[-1] == "grumble"
    assert "grumble" in result.seconds
    files = read_artifact(result.path).files
    report = json.loads(files["report.json"].read_text())
    assert report["warnings"] == ["net is a strange name"]
    assert files["device/code.txt"].read_text() == "3 threads\n"
    assert "threads" not in yaml.safe_load(files["config.yaml"].read_text())


def test_device_without_an_operation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "make_target", lambda name, options: Device(ops=frozenset({"iconv2d"})))
    with pytest.raises(TargetError, match="target 'device' cannot run: "):
        compile_model(config(folder))
    assert not (folder / "net.qcc").exists()


def test_bytes_in_either_layout_give_the_same_artifact(folder: Path) -> None:
    normal = {"mode": "uint8", "mean": 127, "std": 128, "layout": "NHWC"}
    with np.load(folder / "data.npz") as data:
        np.savez(folder / "nhwc.npz", x=data["x"].transpose(0, 2, 3, 1).astype(np.uint8))
    first = compile_model(config(folder, input=normal))
    second = compile_model(config(folder, input=normal, data=folder / "nhwc.npz", output=folder / "b.qcc"))
    assert first.manifest.inputs == second.manifest.inputs
    assert first.manifest.inputs[0].shape == (None, 4, 4, 3)
    assert first.manifest.inputs[0].takes_bytes
    graphs = [read_artifact(r.path).read("graph.qir") for r in (first, second)]
    assert graphs[0] == graphs[1]


def test_unknown_target_is_found_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no 'abacus'"):
        compile_model(config(tmp_path, target="abacus"))
