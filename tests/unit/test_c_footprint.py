"""What generated C takes: machine code and stack, measured by compiling it."""

import json
import subprocess
from pathlib import Path

import pytest
from pydantic import ValidationError

from qcc.errors import TargetError
from qcc.passmgr.context import PassContext
from qcc.verify.fuzz_graphs import make_case
from qcc_targets.c.footprint import code_bytes, stack_bytes
from qcc_targets.c.target import MEMORY, CTarget

USAGE = """\
network.c:10:1:net_run\t16\tstatic
network.c:14:1:net_run_in\t24\tstatic
network.c:20:1:qcc_network\t32\tstatic
network.c:30:1:qcc_kernel_0\t200\tstatic
network.c:40:1:qcc_kernel_1\t120\tstatic
network.c:50:1:qcc_max_int64\t8\tstatic
"""


def test_the_stack_is_that_of_the_deepest_chain_of_calls() -> None:
    assert stack_bytes(USAGE.splitlines(), "net") == 16 + 24 + 32 + 200 + 8
    assert stack_bytes(USAGE.splitlines()[:2], "net") == 40


def test_code_is_what_is_executable(tmp_path: Path) -> None:
    for name, body in (("none", "const char data[4096] = {1};"), ("some", "int f(int a) { return a * 3; }")):
        (tmp_path / f"{name}.c").write_text(body)
        subprocess.run(["cc", "-Os", "-c", "-o", tmp_path / name, tmp_path / f"{name}.c"], check=True)
    assert code_bytes((tmp_path / "none").read_bytes()) == 0
    assert 0 < code_bytes((tmp_path / "some").read_bytes()) < 64
    with pytest.raises(TargetError, match="does not write ELF objects"):
        code_bytes(b"BC\xc0\xde and so on")


def test_a_build_reports_constants_arena_code_and_stack(tmp_path: Path) -> None:
    graph = make_case(7, 3).graph
    CTarget(cross="cc -fno-pic", optimize="size").build(graph, PassContext(), tmp_path)
    memory = json.loads((tmp_path / MEMORY).read_text())
    assert memory["compiler"] == "cc -Os -fno-pic"
    assert min(memory[k] for k in ("constants", "arena", "code", "stack")) > 0
    CTarget().build(graph, PassContext(), tmp_path)
    assert set(json.loads((tmp_path / MEMORY).read_text())) == {"prefix", "constants", "arena"}


def test_the_size_mode_takes_less_code(tmp_path: Path) -> None:
    code = {}
    for optimize in ("speed", "size"):
        options = {"optimize": optimize, "cross": "cc -fno-pic"}
        CTarget.model_validate(options).build(make_case(7, 3).graph, PassContext(), tmp_path)
        code[optimize] = json.loads((tmp_path / MEMORY).read_text())["code"]
    assert code["size"] < code["speed"]


def test_bad_cross_compilers_are_named(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no C compiler 'no-such-gcc' on the PATH"):
        CTarget(cross="no-such-gcc -Os").build(make_case(7, 0).graph, PassContext(), tmp_path)
    with pytest.raises(ValidationError, match="cross"):
        CTarget(cross="gcc; rm x")
