"""The CUDA target: what it builds without a GPU, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcc.errors import ConfigError, TargetError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.plugins import make_target
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram
from qcc_targets.cuda import compiler

U8 = Quant(8, False, (Dyadic.of(0.1),), 3)


def graph() -> Graph:
    b = GraphBuilder("small", Stage.INTEGER)
    x = b.input("x", (BATCH, 3, 9, 11), "u8", U8)
    return b.graph([b.op("reduce_max", [x], axes=(2, 3), keepdims=False, quant=U8)])


def built(out: Path, **options: Any) -> dict[str, bytes]:
    out.mkdir(parents=True)
    return {p.name: p.read_bytes() for p in make_target("cuda", options).build(graph(), PassContext(), out)}


def test_builds_machine_code_for_every_architecture_and_the_same_bytes_twice(tmp_path: Path) -> None:
    files = built(tmp_path / "one")
    assert files == built(tmp_path / "two")
    program = CudaProgram.from_bytes(files[CUDA_PROGRAM])
    assert [image.arch for image in program.images] == ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "compute_90"]
    for image in program.images:
        assert files[image.file].startswith(b"//\n// Generated" if image.portable else b"\x7fELF")
    assert [launch.op for launch in program.launches] == ["reduce_max"]


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown architecture 'sm_20'"):
        make_target("cuda", {"arch": "sm_80,sm_20"})


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_WHEEL", "nvidia.no_such_wheel")
    monkeypatch.setattr(compiler, "_LIBRARIES", ("libnosuch.so.1",))
    with pytest.raises(TargetError, match=r"no CUDA compiler: .* install the extra qcc\[cuda\]"):
        built(tmp_path / "out")
