"""Sweeps over budgets: saved point by point, resumed, and clear about what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from qcc.artifact.contents import read_graph
from qcc.artifact.sizes import layer_sizes
from qcc.artifact.store import read_artifact
from qcc.config import CompileConfig, make_config, read_fields
from qcc.driver import compile_model
from qcc.errors import BudgetError, ConfigError, TargetError
from qcc.frontend.export import export_onnx
from qcc.frontend.load import load_model
from qcc.ir.build import GraphBuilder
from qcc.ir.types import BATCH
from qcc.latency import fitted, measured_table
from qcc.passmgr.latency import LatencyTable, read_latencies
from qcc.passmgr.plugins import make_target
from qcc.points import Point, read_search, with_front
from qcc.search import search

MakeConfig = Callable[..., CompileConfig]


LAYERS = (("one", (12, 8), 1.0), ("two", (12, 12), 0.3), ("three", (12, 12), 3.0), ("last", (4, 12), 1.0))


@pytest.fixture
def make(tmp_path: Path) -> MakeConfig:
    """A configuration over a small residual network for the reference target; keywords change its fields."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("chain")
    x = b.input("x", (BATCH, 8))
    for name, shape, gain in LAYERS:
        w = b.constant((gain * rng.normal(size=shape) / 3).astype(np.float32), f"w_{name}")
        x = b.op("dense", [x, w, b.constant(np.zeros(shape[0], np.float32), f"b_{name}")], name=name, lo=-9.0)
    onnx.save(export_onnx(b.graph([x])), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(96, 8)).astype(np.float32))

    def config(**fields: Any) -> CompileConfig:
        base = {"model": tmp_path / "net.onnx", "output": tmp_path / "net.qcc", "target": "ref", "threads": 1}
        base["passes"] = {"mixed-precision": {"tries": 0}}
        return make_config({**base, "data": str(tmp_path / "data.npz"), **fields})

    return config


def test_points_lie_within_their_budgets_and_compile(make: MakeConfig, tmp_path: Path) -> None:
    report = search(make(), {"bits": (5.0, 6.5), "bops": (1e5,)}, tmp_path / "out")
    assert [p.budgets for p in report.points] == [{"bits": 5.0, "bops": 1e5}, {"bits": 6.5, "bops": 1e5}]
    assert all(p.costs["bits"] <= p.budgets["bits"] for p in report.points)
    assert all(p.front for p in report.points)  # what choices are judged by falls as bits are added
    assert read_search(tmp_path / "out") == report
    point = report.points[0]
    assert point.config is not None
    fields = read_fields(tmp_path / "out" / point.config)
    compiled = compile_model(make_config(fields))
    # The weights in the artifact have the bits of the point, and take as many bytes as it says.
    graph = read_graph(read_artifact(compiled.path).files)
    grids = {o.result.name: o.operands[1].type.quant for o in graph.ops if o.kind == "idense"}
    assert {name: grid.bits for name, grid in grids.items() if grid is not None} == point.weight_bits
    sizes = [layer.bytes for layer in layer_sizes(graph)]
    assert sum(sizes) == point.costs["size"]
    facts = json.loads((tmp_path / "out" / "search.json").read_text())["facts"]
    assert {"Sensitivities", "Perturbations"} <= set(facts)


def test_points_are_judged_with_the_options_of_the_passes_that_compile_them(make: MakeConfig, tmp_path: Path) -> None:
    chooser = {"mixed-precision": {"tries": 0}}
    errors = []
    for bits in (8, 4):
        passes = {**chooser, "quantize": {"activation_bits": bits}}
        (point,) = search(make(passes=passes), {"bits": (6.0,)}, tmp_path / str(bits)).points
        assert point.kl is not None
        errors.append(point.kl)
    assert errors[1] > 2 * errors[0]


class StoppedError(Exception):
    """What stops a search in these tests."""


def test_an_interrupted_search_loses_nothing(make: MakeConfig, tmp_path: Path) -> None:
    folder = tmp_path / "out"

    def stop(what: str, done: int, total: int) -> None:
        if what == "search" and done == 2:
            raise StoppedError

    sweep = {"bits": (5.0, 6.0, 7.0)}
    with pytest.raises(StoppedError):
        search(make(), sweep, folder, progress=stop)
    first = read_search(folder).points
    assert [p.budgets["bits"] for p in first] == [5.0, 6.0]
    done: list[int] = []
    report = search(make(), sweep, folder, progress=lambda w, d, t: done.append(t) if w == "search" else None)
    assert done == [1]
    assert [p.model_copy(update={"front": False}) for p in report.points[:2]] == [
        p.model_copy(update={"front": False}) for p in first
    ]


def test_a_folder_of_another_search_is_refused(make: MakeConfig, tmp_path: Path) -> None:
    search(make(), {"bits": (6.0,)}, tmp_path / "out")
    with pytest.raises(ConfigError, match="holds a search with another model, data or options"):
        search(make(seed=7), {"bits": (6.0,)}, tmp_path / "out")
    assert len(search(make(seed=7), {"bits": (6.0,)}, tmp_path / "out", force=True).points) == 1


def test_budgets_out_of_reach_become_points_that_say_so(make: MakeConfig, tmp_path: Path) -> None:
    report = search(make(), {"bits": (1.0, 8.0)}, tmp_path / "out")
    assert report.points[0].error is not None
    assert "the tightest reachable is" in report.points[0].error
    assert report.points[1].front


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, "a search needs budgets"),
        ({"energy": (1.0,)}, "unknown budget metric 'energy'"),
        ({"latency": (1.0,)}, "pass --latency"),
    ],
)
def test_budgets_that_cannot_be_understood(make: MakeConfig, tmp_path: Path, sweep: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search(make(), sweep, tmp_path / "out")


def test_budgets_that_contradict_each_other(make: MakeConfig) -> None:
    budgets = {"drop": 1e-9, "bits": 4.5}
    with pytest.raises(BudgetError, match=r"drop <= 1e-09; the tightest reachable is"):
        compile_model(make(passes={"mixed-precision": {"budgets": budgets}}))


def table(**changes: Any) -> LatencyTable:
    rows = {name: {4: 1e-3, 8: 3e-3} for name in ("one", "two", "three", "last")}
    whole = {4: 9e-3, 8: 19e-3}
    return fitted(rows, whole, "0" * 64, "ref on this").model_copy(update=changes)


def test_latencies_are_fitted_to_whole_calls() -> None:
    found = table()
    assert found.total({"one": 4, "two": 4, "three": 8, "last": 8}) == pytest.approx(14e-3)
    assert [e.predicted for e in found.end_to_end] == pytest.approx([9e-3, 19e-3])
    with pytest.raises(ConfigError, match="has layer 'one' at 4, 8 bits, not at 5"):
        found.of("one", 5)
    with pytest.raises(ConfigError, match="no layer 'nine'"):
        found.of("nine", 4)


@pytest.mark.parametrize(("changes", "message"), [({}, "of another model"), ({"device": "x"}, "of another device")])
def test_latencies_of_something_else_are_refused(
    make: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = make(latency=tmp_path / "latency.json", passes={})
    own = {} if not changes else {"model_sha256": digest(config)}
    (tmp_path / "latency.json").write_text(table(**own, **changes).model_dump_json())
    with pytest.raises(ConfigError, match=message):
        compile_model(config)


def digest(config: CompileConfig) -> str:
    return load_model(config.model).digest


def test_a_latency_budget_is_met(make: MakeConfig, tmp_path: Path) -> None:
    config = make(latency=tmp_path / "latency.json", passes={})
    own = table(model_sha256=digest(config), device=make_target("ref").device())
    (tmp_path / "latency.json").write_text(own.model_dump_json())
    passes = {"mixed-precision": {"weight_bits": [4, 8], "ends": None, "objectives": ["separate"]}}
    report = search(config.model_copy(update={"passes": passes}), {"latency": (14.1e-3, 19.1e-3)}, tmp_path / "out")
    tight, loose = report.points
    assert sorted(tight.weight_bits.values()) == [4, 4, 8, 8]
    assert set(loose.weight_bits.values()) == {8}
    assert tight.costs["latency"] == pytest.approx(14e-3)


def test_a_cost_model_of_a_device_elsewhere_is_written_by_hand(make: MakeConfig, tmp_path: Path) -> None:
    config = make(passes={})
    rows = [{"layer": name, "seconds": {4: 1.0, 8: 2.0}} for name in ("one", "two", "three", "last")]
    given = {"model_sha256": digest(config), "device": "ref on a board elsewhere", "layers": rows}
    (tmp_path / "latency.json").write_text(json.dumps(given))
    passes = {"mixed-precision": {"weight_bits": [4, 8], "objectives": ["separate"]}}
    config = config.model_copy(update={"passes": passes, "latency": tmp_path / "latency.json"})
    (point,) = search(config, {"latency": (6.5,)}, tmp_path / "out").points
    assert sorted(point.weight_bits.values()) == [4, 4, 8, 8]


def test_a_target_that_cannot_be_timed_says_so(make: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="target 'ref' cannot time its layers"):
        measured_table(make(passes={"mixed-precision": {"weight_bits": [8]}}), tmp_path / "latency.json")


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text('{"format": 1}')
    with pytest.raises(ConfigError, match=r"latency\.json: model_sha256: Field required"):
        read_latencies(tmp_path / "latency.json")


def test_the_front_holds_what_nothing_dominates() -> None:
    def point(bits: float, softened: float) -> Point:
        return Point(budgets={"bits": bits}, config="c", costs={"bits": bits}, kl=1.0, kl_error=0.0, softened=softened)

    points = with_front((point(4, 0.3), point(5, 0.1), point(6, 0.2), point(8, 0.05), Point(budgets={}, error="e")))
    assert [p.front for p in points] == [True, True, False, True, False]
