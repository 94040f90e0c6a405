"""Tuning: what is measured, kept, continued and used."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.errors import ConfigError, TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.verify.interp import evaluate
from qcc_targets.cpu.child import Limits
from qcc_targets.cpu.isa import LEVELS, Isa, available
from qcc_targets.cpu.kernel import Site
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.simd.conv import Candidate, candidates
from qcc_targets.cpu.target import CpuTarget
from qcc_targets.cpu.trial import compile_and_run
from qcc_targets.cpu.tuning import Tuning, tune

U8 = Quant(8, False, (Dyadic.of(0.1),), 3)


def dense(outputs: int = 40) -> Graph:
    b = GraphBuilder("net", Stage.INTEGER)
    rng = np.random.default_rng(0)
    operands = [
        b.input("x", (BATCH, 24), "u8", U8),
        b.constant(rng.integers(-127, 128, (outputs, 24)).astype(np.int8), "w"),
        b.constant(rng.integers(1 << 20, 1 << 23, outputs).astype(np.int32), "m"),
        b.constant(rng.integers(0, 1 << 40, outputs).astype(np.int64), "c"),
    ]
    clamp: dict[str, Any] = {"shift": 32, "qmin": 0, "qmax": 255, "quant": U8}
    return b.graph([b.op("idense", operands, **clamp)])


def site(graph: Graph) -> Site:
    return next(step.site for step in lower(graph).steps if step.site.op.kind == "idense")


def quietly(what: str, done: int, total: int) -> None:
    """No progress bar."""


@pytest.fixture
def avx2() -> Isa:
    if LEVELS["avx2"] not in available():
        pytest.skip("this processor has no AVX2")
    return LEVELS["avx2"]


def test_what_is_measured_is_kept_and_not_measured_again(avx2: Isa, tmp_path: Path) -> None:
    table, target = tmp_path / "tuning.json", CpuTarget(isa=("avx2",))
    (tuned,) = target.tune(dense(), table, PassContext())
    assert 0 < tuned.after <= tuned.before
    assert Tuning.read(table).levels == {"avx2": {site(dense()).spelling: tuned.choice}}
    start = time.perf_counter()
    assert target.tune(dense(), table, PassContext()) == []
    assert time.perf_counter() - start < 5


def test_every_choice_gives_the_same_bits(avx2: Isa, tmp_path: Path) -> None:
    graph, table = dense(), tmp_path / "tuning.json"
    inputs = {"x": np.random.default_rng(1).integers(0, 256, (3, 24)).astype(np.uint8)}
    names = [c.name for c in candidates(site(graph), avx2)]
    for name in (names[0], names[-1], "one that is no more"):
        Tuning(levels={"avx2": {site(graph).spelling: name}}).write(table)
        isa = Tuning.read(table).of(avx2)
        (row,) = [r for r in assemble(lower(graph), isa).report if r.op == "idense"]
        assert (name.removeprefix("vectors ") in row.kernel) == (name in names)
        assert np.array_equal(
            next(iter(compile_and_run(graph, inputs, isa).values())), next(iter(evaluate(graph, inputs).values()))
        )


def test_a_candidate_that_differs_is_an_error(avx2: Isa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = candidates(site(dense()), avx2)[:1]
    (other,) = candidates(site(dense(41)), avx2)[:1]

    def wrong(*_: object) -> Sequence[Candidate]:
        return [first, Candidate("wrong", 1.0, other.build)]

    monkeypatch.setattr("qcc_targets.cpu.tuning.candidates", wrong)
    with pytest.raises(TargetError, match="'wrong' gives other results"):
        tune([site(dense())], avx2, tmp_path / "t.json", Limits(), quietly)
    assert not (tmp_path / "t.json").exists()


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"levels": 7}')
    with pytest.raises(ConfigError, match=r"t\.json"):
        Tuning.read(tmp_path / "t.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        CpuTarget(tuning=tmp_path / "none.json").build(dense(), PassContext(), tmp_path)


def test_instruction_sets_that_do_not_run_here_cannot_be_tuned(tmp_path: Path) -> None:
    foreign = next(name for name, level in LEVELS.items() if level not in available())
    with pytest.raises(TargetError, match="runs none of"):
        CpuTarget(isa=(foreign,)).tune(dense(), tmp_path / "t.json", PassContext())
