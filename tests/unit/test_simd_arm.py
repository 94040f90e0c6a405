"""AArch64's kernels against the reference, on an emulated processor that has just what their level says."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.graph import Graph, Value
from qcc.verify.interp import evaluate
from qcc_targets.cpu.isa import LEVELS
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.select import select

FOLDER = Path(__file__).parent


def script(path: Path) -> ModuleType:
    """A Python file that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def arm() -> ModuleType:
    """What emulates AArch64; skips where its tools are absent."""
    module = script(FOLDER.parent / "bench" / "aarch64.py")
    if (complaint := module.missing()) is not None:
        pytest.skip(complaint)
    return module


def codes(value: Value, count: int, rng: np.random.Generator) -> NDArray[Any]:
    """Codes of the value's grid, its extremes among them."""
    quant = value.type.quant
    assert quant is not None
    drawn = rng.integers(quant.qmin, quant.qmax + 1, (count, *value.type.shape[1:]))
    extremes = rng.random(drawn.shape)
    drawn = np.where(extremes < 0.1, quant.qmin, np.where(extremes > 0.9, quant.qmax, drawn))
    return drawn.astype(value.type.numpy)


def contractions() -> Graph:
    """The families of the x86 tests, and codes that are signed."""
    families = script(FOLDER / "test_simd_contraction.py")
    b = families.Bench()
    x = b.x(24, 6, 7, quant=families.grid(8, True, -3))
    b.conv(x, 40)
    b.conv(x, 9, (1, 1), pads=(0, 0, 0, 0), quant=families.grid(16))
    b.dense(b.x(3, 35, quant=families.grid(8, True, 0)), 21)
    made: tuple[Callable[[Any], None], ...] = (
        families.bytes_in,
        families.words_in,
        families.depthwise,
        families.drawn,
        families.small_planes,
    )
    for family in made:
        family(b)
    graph: Graph = b.graph()
    return graph


def sums() -> Graph:
    graph: Graph = script(FOLDER / "test_simd_rescale.py").sums()[0]
    return graph


def tables() -> Graph:
    graph: Graph = script(FOLDER / "test_simd_lookup.py").tables()
    return graph


@pytest.mark.parametrize(
    ("level", "build", "instructions"),
    [
        ("neon", sums, {"smlal2", "umlal", "sqxtun"}),
        ("neon", tables, {"tbl", "tbx"}),
        ("dotprod", contractions, {"sdot", "smlal2", "sqxtun", "sqxtn2"}),
        ("i8mm", contractions, {"usdot", "usmmla", "smmla", "umlal"}),
    ],
)
def test_kernels_compute_what_the_reference_does(
    level: str, build: Callable[[], Graph], instructions: set[str], arm: ModuleType, tmp_path: Path
) -> None:
    graph, rng = build(), np.random.default_rng(0)
    inputs = {v.name: codes(v, 2, rng) for v in graph.inputs}
    emulated = arm.Emulated(graph, LEVELS[level], tmp_path, batch=2).build()
    expected, got = evaluate(graph, inputs), emulated.run(inputs)
    assert {k: int((got[k] != expected[k]).sum()) for k in expected} == dict.fromkeys(expected, 0)
    assert instructions <= mnemonics(emulated.library)


def mnemonics(library: Path) -> set[str]:
    """The instructions in the machine code of an AArch64 library."""
    objdump = shutil.which("aarch64-linux-gnu-objdump")
    if objdump is None:
        pytest.skip("no aarch64-linux-gnu-objdump here: install binutils-aarch64-linux-gnu")
    command = [objdump, "--disassemble", "--no-show-raw-insn", str(library)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return {row[1] for row in rows if len(row) > 1 and row[0].endswith(":")}


def test_every_contraction_of_bytes_has_a_kernel_of_its_level() -> None:
    steps = [s for s in lower(contractions()).steps if s.site.op.kind in ("iconv2d", "idense")]
    for level in ("dotprod", "i8mm"):
        names = {select(step.site, LEVELS[level]).name for step in steps}
        assert [n for n in names if level not in n] == []
        assert any("matrix" in n for n in names) == (level == "i8mm")
