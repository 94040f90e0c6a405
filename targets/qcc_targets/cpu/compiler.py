"""From TensorIR functions to one shared library, by child processes; equal input gives equal bytes."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tvm
from tvm import tirx

from qcc.errors import TargetError
from qcc_targets.cpu.child import Limits, run_shares
from qcc_targets.cpu.codegen import compile_object
from qcc_targets.cpu.isa import Isa

_UNITS: Final = 4
_LEAST: Final = 4
_MOST: Final = 16
"""Functions are compiled in modules of ``_LEAST`` to ``_MOST``, so that there are about ``_UNITS``: a module
has a cost of its own, and several can be compiled at once. Nothing here depends on the machine, since
the division into modules shows in the library."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Functions that are compiled together; they may compute with floats only where ``floats`` says so."""

    functions: Mapping[str, tirx.PrimFunc]
    floats: bool = False

    def module(self) -> tvm.IRModule:
        return tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in self.functions.items()})


def units(functions: Mapping[str, tirx.PrimFunc]) -> list[Unit]:
    """``functions`` in units of a few."""
    items = list(functions.items())
    size = min(_MOST, max(_LEAST, -(-len(items) // _UNITS)))
    return [Unit(dict(items[start : start + size])) for start in range(0, len(items), size)]


class Compiler:
    """Compiles and links, in children of this process.

    A child is forked, so that it finds TVM loaded and the functions in its memory: to write them down,
    and read them in another process, takes as long as to compile them. Several threads may share one.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()

    def library(self, parts: Sequence[Unit], exported: Sequence[str], isa: Isa, path: Path) -> None:
        """Compile ``parts`` and link them into ``path``; only the symbols ``exported`` stay visible.

        Raises TargetError when a compilation fails, crashes or exceeds its limits, and where there
        is no linker.
        """
        linker = find_linker(isa.machine)
        with tempfile.TemporaryDirectory(prefix="qcc-") as scratch:
            folder = Path(scratch)
            jobs = [_Job(part, isa, folder / f"{n}.o") for n, part in enumerate(parts)]
            run_shares(_compile, jobs, self.limits, folder)
            _link(linker, [job.path for job in jobs], exported, folder, path)


@dataclass(frozen=True, slots=True)
class _Job:
    unit: Unit
    isa: Isa
    path: Path


def _compile(jobs: Sequence[_Job]) -> None:
    for job in jobs:
        compile_object(job.unit.module(), job.isa.target(), job.path, floats=job.unit.floats)


def find_linker(machine: str = "x86_64") -> str:
    """The path of a GNU ld that links for the processor family ``machine``. Raises TargetError where there is none."""
    names = [f"{machine}-linux-gnu-ld", *(["ld"] if machine == platform.machine() else [])]
    linker = next(filter(None, map(shutil.which, names)), None)
    if linker is None:
        raise TargetError(f"no linker: the cpu target needs '{names[-1]}' (GNU binutils) on the PATH")
    return linker


def _link(linker: str, objects: Sequence[Path], exported: Sequence[str], folder: Path, path: Path) -> None:
    script = folder / "exports.map"
    script.write_text(f"{{ global: {' '.join(f'{name};' for name in exported)} local: *; }};\n")
    flags = ["-shared", "--strip-all", "--gc-sections", "--build-id=none", "-z", "noexecstack", "-z", "relro"]
    command = [linker, *flags, f"--version-script={script}", "-o", str(path), *map(str, objects)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"linking failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}")
