"""Instruction sets: their names, artifacts that hold several, and which one is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcc.errors import ArtifactError, ConfigError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.runtime.levels import choose
from qcc.runtime.program import PROGRAM, Level, Program
from qcc.runtime.tvm_network import Network
from qcc.verify.interp import evaluate
from qcc_targets.cpu.isa import LEVELS, available, resolve, resolve_all
from qcc_targets.cpu.target import CpuTarget
from qcc_targets.cpu.trial import run

U8 = Quant(8, False, (Dyadic.of(0.1),), 3)


def level(name: str) -> Level:
    flags = tuple(LEVELS[name].flags)
    return Level(isa=name, flags=flags, library="l.so", constants="c.bin", arena=0)


def program(*names: str) -> Program:
    levels = tuple(map(level, names))
    return Program(entry="f", machine="x86_64", levels=levels, batch=1, inputs=(), outputs=())


def network() -> Graph:
    """A convolution and a dense layer."""
    b = GraphBuilder("net", Stage.INTEGER)
    rng = np.random.default_rng(0)
    window: dict[str, Any] = {"strides": (1, 1), "pads": (1,) * 4, "dilations": (1, 1), "groups": 1}
    clamp: dict[str, Any] = {"shift": 32, "qmin": 0, "qmax": 255, "quant": U8}

    def constants(*shape: int) -> list[Any]:
        return [
            b.constant(rng.integers(-127, 128, shape).astype(np.int8), "w"),
            b.constant(rng.integers(1 << 20, 1 << 23, shape[0]).astype(np.int32), "m"),
            b.constant(rng.integers(0, 1 << 40, shape[0]).astype(np.int64), "c"),
        ]

    y = b.op("iconv2d", [b.input("x", (BATCH, 8, 6, 7), "u8", U8), *constants(16, 8, 3, 3)], **window, **clamp)
    y = b.op("reduce_max", [y], axes=(2, 3), keepdims=False, quant=U8)
    return b.graph([b.op("idense", [y, *constants(10, 16)], **clamp)])


def test_a_foreign_processor_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"cannot run avx2 \(lacks avx2, bmi1"):
        choose(program("avx2"), flags=frozenset())
    with pytest.raises(ArtifactError, match="compiled for vax"):
        choose(program("avx2").model_copy(update={"machine": "vax"}))


def test_the_richest_level_that_fits_is_chosen() -> None:
    fat = program("amx", "avx512vbmi", "avx2")
    assert choose(fat, flags=LEVELS["avx512vbmi"].flags).isa == "avx512vbmi"
    assert choose(fat, flags=LEVELS["avx512"].flags).isa == "avx2"
    assert choose(fat, "avx2", LEVELS["avx512vbmi"].flags).isa == "avx2"
    with pytest.raises(ArtifactError, match=r"cannot run amx \(.*; nor avx512vbmi \(.*; nor avx2 \(lacks f16c\)"):
        choose(fat, flags=LEVELS["avx2"].flags - {"f16c"})
    with pytest.raises(ArtifactError, match=r"cannot run avx512vbmi \(lacks"):
        choose(fat, "avx512vbmi", LEVELS["avx2"].flags)
    with pytest.raises(ConfigError, match="not compiled for 'avxvnni', only for amx, avx512vbmi, avx2"):
        choose(fat, "avxvnni")


def test_without_permission_for_amx_the_next_level_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ArtifactError("refused")

    fat = program("amx", "avx2")
    monkeypatch.setattr("qcc.runtime.levels.request_amx", refuse)
    assert choose(fat, flags=LEVELS["amx"].flags).isa == "avx2"
    with pytest.raises(ArtifactError, match=r"amx \(refused\)"):
        choose(fat, "amx", LEVELS["amx"].flags)


def test_a_fat_artifact_gives_the_same_bits_on_every_level(tmp_path: Path) -> None:
    names = [isa.name for isa in available() if isa.name in ("generic", "avx2", "avx512", "amx")]
    graph = network()
    CpuTarget.model_validate({"isa": ",".join(names)}).build(graph, PassContext(), tmp_path)
    assert list(json.loads((tmp_path / "kernels.json").read_text())) == names[::-1]
    fat = Program.from_bytes((tmp_path / PROGRAM).read_bytes())
    assert [found.isa for found in fat.levels] == names[::-1]
    inputs = {"x": np.random.default_rng(1).integers(0, 256, (2, 8, 6, 7)).astype(np.uint8)}
    expected = evaluate(graph, inputs)
    for found in fat.levels:
        constants = np.fromfile(tmp_path / found.constants, np.uint8)
        loaded = Network(fat, choose(fat, found.isa), tmp_path / found.library, constants)
        got = run(loaded, inputs)
        assert all(np.array_equal(got[name], expected[name]) for name in expected), found.isa


def test_levels_are_resolved() -> None:
    everything = frozenset().union(*(level.flags for level in LEVELS.values()))
    assert resolve("native", None, everything).name == "amx"
    assert resolve("native", "neoverse-n2").name == "i8mm"
    assert [isa.name for isa in resolve_all(("avx2", "amx", "avx2"))] == ["amx", "avx2"]
    assert resolve("native", None, frozenset()).name == "generic"
    assert resolve("avx2").name == "avx2"
    assert resolve("native", "icelake-server").name == "avx512vbmi"
    assert resolve("avx2", "sapphirerapids").mcpu == "sapphirerapids"
    assert available(LEVELS["avx2"].flags) == (LEVELS["generic"], LEVELS["avx2"])
    with pytest.raises(ConfigError, match="has no amx"):
        resolve("amx", "haswell")
    with pytest.raises(ConfigError, match="has no avx2"):
        resolve("avx2", "neoverse-n2")
    with pytest.raises(ConfigError, match="of several"):
        resolve_all(("avx2", "neon"))
    with pytest.raises(ConfigError, match="does not go with several"):
        resolve_all(("avx2", "avx512"), "haswell")
    with pytest.raises(ConfigError, match="unknown processor"):
        resolve("native", "pentium")
    with pytest.raises(ConfigError, match="unknown instruction set"):
        resolve("mmx")


def test_an_unknown_level_is_refused_by_the_options() -> None:
    with pytest.raises(ValueError, match="unknown instruction set 'mmx'"):
        CpuTarget(isa=("mmx",))
