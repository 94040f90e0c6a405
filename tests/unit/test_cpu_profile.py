"""Artifacts that time their own steps."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qcc.artifact.contents import tensor_spec
from qcc.artifact.manifest import Manifest, PluginSpec
from qcc.artifact.store import read_artifact, write_artifact
from qcc.cli import app
from qcc.device import build_device
from qcc.errors import ArtifactError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.plugins import make_target
from qcc.runtime.tvm_profile import profile
from qcc_targets.cpu.trial import compile_graph


def network() -> Graph:
    """A dense layer of 64 by 48, then a table."""
    b = GraphBuilder("profiled", Stage.INTEGER)
    quant = Quant(8, False, (Dyadic(3, 8),), 0)
    x = b.input("x", (BATCH, 64), quant=quant, dtype="u8")
    w = b.constant(np.ones((48, 64), np.int8), "w", quant=Quant(8, True, (Dyadic(1, 7),), 0))
    m, c = b.constant(np.full(48, 1 << 20, np.int32), "m"), b.constant(np.zeros(48, np.int64), "c")
    y = b.op("idense", [x, w, m, c], quant=quant, shift=32, qmin=0, qmax=255)
    table = b.constant(np.arange(256)[::-1].astype(np.uint8).copy(), "table")
    return b.graph([b.op("ilookup", [y, table], quant=quant)])


def artifact(target: str, folder: Path) -> Path:
    graph, made = network(), make_target(target, {})
    manifest = Manifest(
        qcc_version="0",
        model="profiled",
        source_sha256="0" * 64,
        target=PluginSpec(name=target),
        backend=made.backend,
        pipeline=(),
        inputs=tuple(map(tensor_spec, graph.inputs)),
        outputs=tuple(map(tensor_spec, graph.outputs)),
    )
    write_artifact(folder / target, manifest, build_device(made, graph, PassContext(0, 1, made.capabilities)))
    return folder / target


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact("cpu", tmp_path_factory.mktemp("profile"))


def test_every_step_is_timed_beside_what_the_machine_can_do(compiled: Path) -> None:
    found = profile(read_artifact(compiled), rounds=3)
    steps = {s.op: s for s in found.steps}
    assert steps["idense"].operations == 2 * 64 * 48
    assert all(s.hot > 0 and s.inside > 0 for s in found.steps)
    assert 0 < found.hot < 1e-3 and 0 < found.inside < 1e-3
    assert found.bandwidth > 1e8
    share = found.roofline(steps["idense"])
    assert (share is None) == (found.peak == 0)
    assert share is None or 0 < share < 20


def test_the_steps_work_in_memory_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_graph(network())
    arena, made, alive = compiled.arena, [], []

    def watched() -> Any:
        found = arena()
        made.append(weakref.ref(found[0]))
        return found

    class Library:
        def function(self, *_: Any) -> Any:
            return lambda *_: alive.append(made[0]() is not None)

    monkeypatch.setattr(compiled, "arena", watched)
    monkeypatch.setattr(compiled, "_library", Library())
    compiled.profile(
        {"x": np.zeros((1, 64), np.uint8)}, {compiled.program.outputs[0].name: np.zeros((1, 48), np.uint8)}, 2, 1
    )
    assert alive == [True]


def test_the_command_prints_it(compiled: Path) -> None:
    done = CliRunner().invoke(app, ["bench", str(compiled), "--profile", "--rounds", "2", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {s["op"] for s in report["steps"]} >= {"idense", "ilookup"}
    assert report["seconds"]["network"] > 0
    table = CliRunner().invoke(app, ["bench", str(compiled), "--profile", "--rounds", "2"])
    assert table.exit_code == 0 and "of the network's time" in table.stdout


def test_other_artifacts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="for 'ref'"):
        profile(read_artifact(artifact("ref", tmp_path)))
