"""The short way through a session against the general one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.artifact.contents import tensor_spec
from qcc.artifact.manifest import Manifest, PluginSpec
from qcc.artifact.store import read_artifact, write_artifact
from qcc.device import build_device
from qcc.errors import ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.runtime import Session
from qcc_targets.cpu.target import CpuTarget


def network() -> Graph:
    """The sum 3a + b, requantized to int32, and a's codes and those of the gridless k through a table."""
    b = GraphBuilder("direct", Stage.INTEGER)
    a, other = (
        b.input(name, (BATCH, 7), quant=Quant(bits, False, (Dyadic(3, 8),), zero), dtype="u8")
        for name, bits, zero in (("a", 8, 40), ("b", 6, 0))
    )
    m = [b.constant(np.array(v << 24, np.int32), "m") for v in (3, 1)]
    c = b.constant(np.array(-5 << 24, np.int64), "c")
    wide = Quant(32, True, (Dyadic(1, 9),), 4)
    bounds: dict[str, Any] = {"shift": 24, "qmin": wide.qmin, "qmax": wide.qmax}
    y = b.op("ilinear", [c, a, m[0], other, m[1]], quant=wide, **bounds)
    table = b.constant(np.arange(256)[::-1].astype(np.uint8).copy(), "table")
    k = b.input("k", (BATCH, 7), dtype="u8")
    return b.graph([y, b.op("ilookup", [k, table], dtype="u8"), b.op("ilookup", [a, table], quant=a.type.quant)])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    graph = network()
    target = CpuTarget(isa=("generic",))
    device = build_device(target, graph, PassContext(0, 1, target.capabilities))
    manifest = Manifest(
        qcc_version="0",
        model="direct",
        source_sha256="0" * 64,
        target=PluginSpec(name="cpu"),
        backend="tvm",
        pipeline=(),
        inputs=tuple(map(tensor_spec, graph.inputs)),
        outputs=tuple(map(tensor_spec, graph.outputs)),
    )
    path = tmp_path_factory.mktemp("direct") / "out"
    write_artifact(path, manifest, device)
    return Session(read_artifact(path))


def reals(samples: int) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (samples, 7), np.uint8)
    return {name: rng.normal(0, 2, (samples, 7)).astype(np.float32) for name in ("a", "b")} | {"k": codes}


def is_direct(session: Session, inputs: dict[str, Any]) -> bool:
    return session._direct(inputs, True) is not None


@pytest.mark.parametrize("raw", [True, False])
def test_it_gives_what_the_general_way_gives(session: Session, raw: bool) -> None:
    x = reals(1)
    general = session.run(x | {"a": x["a"].astype(np.float64)}, raw=raw)
    for _ in range(2):
        short = session.run(x, raw=raw)
        assert list(short) == list(general)
        for name, array in general.items():
            assert short[name].dtype == array.dtype and np.array_equal(short[name], array)
    assert is_direct(session, x)


def test_results_stay_when_the_next_call_runs(session: Session) -> None:
    first = session.run(reals(1), raw=True)
    kept = {name: array.copy() for name, array in first.items()}
    session.run({name: -array for name, array in reals(1).items()}, raw=True)
    assert all(np.array_equal(first[name], kept[name]) for name in kept)


def test_raw_and_real_calls_do_not_disturb_each_other(session: Session) -> None:
    x = reals(1)
    codes, answers = session.run(x, raw=True), session.run(x)
    kept = [{name: array.copy() for name, array in results.items()} for results in (codes, answers)]
    other = {name: array[:, ::-1].copy() for name, array in x.items()}
    session.run(other), session.run(other, raw=True)
    for results, before in zip((codes, answers), kept, strict=True):
        assert all(np.array_equal(results[name], before[name]) for name in before)


def test_read_only_arrays_are_taken(session: Session) -> None:
    x = reals(1)
    expected = session.run(x)
    for array in x.values():
        array.setflags(write=False)
    assert is_direct(session, x)
    assert all(np.array_equal(array, expected[name]) for name, array in session.run(x).items())


def test_whatever_else_comes_takes_the_general_way(session: Session) -> None:
    x = reals(1)
    wide = np.zeros((1, 14), np.float32)
    codes = {name: np.zeros((1, 7), np.uint8) for name in x}
    wrong = x | {"k": np.zeros((1, 7), np.float32)}
    for inputs in (
        reals(2),
        codes,
        x | {"a": x["a"].astype(np.float64)},
        x | {"a": wide[:, ::2]},
        x | {"a": [[0.0] * 7]},
    ):
        assert not is_direct(session, inputs)
        assert session.run(inputs)
    with pytest.raises(ConfigError, match="no array for the input 'b'"):
        session.run({"a": x["a"], "k": x["k"]})
    with pytest.raises(ConfigError, match="'k' has dtype float32"):
        session.run(wrong)
    with pytest.raises(ConfigError, match="no input is called 'c'"):
        session.run(x | {"c": x["a"]})
    with pytest.raises(ConfigError, match="'b' holds NaN"):
        session.run(x | {"b": np.full((1, 7), np.nan, np.float32)})
