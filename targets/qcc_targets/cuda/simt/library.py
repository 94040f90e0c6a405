"""Compiling CUDA source for the host, by g++ in child processes with limits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Final

from qcc.errors import TargetError
from qcc_targets.c.toolchain import run_compiler

HEADER: Final = "device.h"
COMPILER = "g++"
_RUNTIME: Final = ("schedule.cpp", "warp.cpp")
_RACES: Final = "race.cpp"

_COMMON: Final = ("-std=c++17", "-march=native", "-fPIC", "-fvisibility=hidden", "-fwrapv", "-fno-strict-aliasing")
_KERNELS: Final = (
    "-fno-extern-tls-init",  # shared variables have no initializers
    "-fno-exceptions",
    "-Werror=frame-larger-than=16384",  # half of a thread's stack
)
_CHECKED: Final = ("-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0")
"""The instrumentation alone: its runtime is not linked, ``race.cpp`` stands for it."""


def compile_library(source: str, output: Path, *, racecheck: bool = False) -> None:
    """Compile the CUDA ``source`` with the runtime into the shared library ``output``.

    Raises TargetError where there is no compiler, or it refuses the source.
    """
    with tempfile.TemporaryDirectory(prefix="qcc-simt-") as scratch:
        folder = Path(scratch)
        (folder / "network.cu").write_text(source)
        header = str(_sources() / HEADER)
        level = ("-O1", *_CHECKED) if racecheck else ("-O2",)
        flags = (*_COMMON, *_KERNELS, *level, "-include", header)
        _compile(["-x", "c++", *flags, "-c", "network.cu", "-o", "network.o"], folder)
        objects = ("network.o", *map(str, _runtime(racecheck)))
        _compile(["-shared", "-Wl,-Bsymbolic", "-Wl,--build-id=none", *objects, "-o", "library.so"], folder)
        shutil.move(folder / "library.so", output)


@cache
def _runtime(racecheck: bool) -> Sequence[Path]:
    """Object files of the runtime, compiled once in a process."""
    folder = Path(_scratch().name)
    files = (*_RUNTIME, _RACES) if racecheck else _RUNTIME
    checked = ("-DQCC_SIMT_RACECHECK",) if racecheck else ()
    objects = [folder / f"{name}{'-checked' if racecheck else ''}.o" for name in files]
    for name, path in zip(files, objects, strict=True):
        _compile([*_COMMON, *checked, "-O3", "-c", str(_sources() / name), "-o", str(path)], folder)
    return objects


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder that goes away with the process."""
    return tempfile.TemporaryDirectory(prefix="qcc-simt-runtime-")


def _sources() -> Path:
    return Path(str(resources.files("qcc_targets.cuda.simt")))


def _compile(arguments: Sequence[str], folder: Path) -> None:
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise TargetError(f"no C++ compiler: running CUDA kernels on the host needs '{COMPILER}' on the PATH")
    run_compiler([compiler, *arguments], folder)
