"""From TensorIR functions to one shared library, by child processes; equal input gives equal bytes."""

from __future__ import annotations

import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import tvm
from tvm import tirx

from qcc.errors import TargetError
from qcc_targets.cpu.isa import Isa

_UNITS: Final = 4
_LEAST: Final = 4
_MOST: Final = 16
"""Functions are compiled in modules of ``_LEAST`` to ``_MOST``, so that there are about ``_UNITS``: a module
has a cost of its own, and several can be compiled at once. Nothing here depends on the machine, since
the division into modules shows in the library."""

_PER_WORKER: Final = 4
"""Modules that keep one process busy for long enough: a process takes a second to start."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Functions that are compiled together; they may compute with floats only where ``floats`` says so."""

    functions: Mapping[str, tirx.PrimFunc]
    floats: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one compilation may take: seconds of processor time, bytes of address space; how many run at once."""

    seconds: int = 600
    memory: int = 8 << 30
    processes: int = 2


def units(functions: Mapping[str, tirx.PrimFunc]) -> list[Unit]:
    """``functions`` in units of a few."""
    items = list(functions.items())
    size = min(_MOST, max(_LEAST, -(-len(items) // _UNITS)))
    return [Unit(dict(items[start : start + size])) for start in range(0, len(items), size)]


class Compiler:
    """Compiles and links; its child processes start with the first library and stay for the next ones.

    Several threads may share one; they take turns.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._workers = [_Worker(self.limits) for _ in range(self.limits.processes)]
        self._turn = threading.Lock()

    def library(self, parts: Sequence[Unit], exported: Sequence[str], isa: Isa, path: Path) -> None:
        """Compile ``parts`` and link them into ``path``; only the symbols ``exported`` stay visible.

        Raises TargetError when a compilation fails, crashes or exceeds its limits, and where there
        is no linker.
        """
        linker = find_linker(isa.machine)
        with tempfile.TemporaryDirectory(prefix="qcc-") as scratch:
            folder = Path(scratch)
            for number, part in enumerate(parts):
                module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in part.functions.items()})
                (folder / f"{number}.json").write_text(tvm.ir.save_json(module))
            busy = self._workers[: -(-len(parts) // _PER_WORKER)]
            shares = [list(range(first, len(parts), len(busy))) for first in range(len(busy))]
            with ThreadPoolExecutor(len(busy)) as pool:
                jobs = [
                    pool.submit(worker.run, folder, share, parts, isa)
                    for worker, share in zip(busy, shares, strict=True)
                ]
            for job in jobs:  # all have ended by now: a failure must not leave another worker's job unread
                job.result()
            _link(linker, [folder / f"{n}.o" for n in range(len(parts))], exported, folder, path)


class _Worker:
    """One ``compile_worker`` process, started at its first job."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[str] | None = None

    def run(self, folder: Path, share: Sequence[int], parts: Sequence[Unit], isa: Isa) -> None:
        """Compile the units whose numbers are in ``share``. Raises TargetError."""
        job, log = folder / f"job{share[0]}.json", folder / f"job{share[0]}.log"
        files = [
            {
                "module": str(folder / f"{n}.json"),
                "object": str(folder / f"{n}.o"),
                "floats": parts[n].floats,
            }
            for n in share
        ]
        limits = {"seconds": self._limits.seconds, "memory": self._limits.memory}
        job.write_text(json.dumps({"target": isa.target(), "log": str(log), "units": files, **limits}))
        status = self._ask(str(job))
        code = os.waitstatus_to_exitcode(status)
        if code == 0:
            return
        detail = (log.read_text().strip().splitlines() or ["no message"])[-1][:300] if log.exists() else "no message"
        if code == TargetError.exit_code:
            raise TargetError(detail)
        if code < 0:
            seconds, memory = self._limits.seconds, self._limits.memory >> 20
            detail = f"killed by {signal.Signals(-code).name}; its limits are {seconds} s and {memory} MiB"
        raise TargetError(f"native compilation failed: {detail}")

    def _ask(self, job: str) -> int:
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise TargetError("the compiling process has no pipes")
        try:
            process.stdin.write(f"{job}\n")
            process.stdin.flush()
            answer = process.stdout.readline() if _readable(process.stdout, 4 * self._limits.seconds) else ""
        except OSError:
            answer = ""
        if not answer:
            _stop(process)
            self._process = None
            raise TargetError("the compiling process ended, or took far longer than its limits allow")
        return int(answer)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, "-m", "qcc_targets.cpu.compile_worker"]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, start_new_session=True
            )
            weakref.finalize(self, _stop, self._process)
        return self._process


def _readable(pipe: IO[str], seconds: int) -> bool:
    """Whether ``pipe`` has something to read, or ends, within ``seconds``."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _stop(process: subprocess.Popen[str]) -> None:
    """End the process and whatever it has forked."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.wait()


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
