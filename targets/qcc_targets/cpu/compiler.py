"""From TensorIR functions to one shared library, by child processes; equal input gives equal bytes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import tvm
from tvm import tirx

from qcc.errors import TargetError
from qcc_targets.cpu.isa import Isa

_PER_UNIT: Final = 8
"""Functions in one module: fixed, so that the number of processes never changes the result."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Functions that are compiled together; ``packed`` under TVM's calling convention."""

    functions: Mapping[str, tirx.PrimFunc]
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may take: seconds of processor time, bytes of address space; how many run at once."""

    seconds: int = 600
    memory: int = 8 << 30
    processes: int = 2


def units(functions: Mapping[str, tirx.PrimFunc]) -> list[Unit]:
    """``functions`` in units of a few."""
    items = list(functions.items())
    return [Unit(dict(items[start : start + _PER_UNIT])) for start in range(0, len(items), _PER_UNIT)]


def build_library(parts: Sequence[Unit], exported: Sequence[str], isa: Isa, limits: Limits, path: Path) -> None:
    """Compile ``parts`` and link them into ``path``; only the symbols ``exported`` stay visible.

    Raises TargetError when a compiler fails, crashes or exceeds its limits, and where there is no linker.
    """
    with tempfile.TemporaryDirectory(prefix="qcc-") as scratch:
        folder = Path(scratch)
        objects = []
        for number, part in enumerate(parts):
            module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in part.functions.items()})
            (folder / f"{number}.json").write_text(tvm.ir.save_json(module))
            objects.append(folder / f"{number}.o")
        shares = [range(first, len(parts), limits.processes) for first in range(min(limits.processes, len(parts)))]
        with ThreadPoolExecutor(len(shares)) as pool:
            list(pool.map(lambda share: _compile(folder, share, parts, isa, limits), shares))
        _link(objects, exported, folder, path)


def _compile(folder: Path, share: range, parts: Sequence[Unit], isa: Isa, limits: Limits) -> None:
    job = folder / f"job{share.start}.json"
    files = [
        {"module": str(folder / f"{n}.json"), "object": str(folder / f"{n}.o"), "packed": parts[n].packed}
        for n in share
    ]
    spec = {"target": isa.target(), "seconds": limits.seconds, "memory": limits.memory, "units": files}
    job.write_text(json.dumps(spec))
    command = [sys.executable, "-m", "qcc_targets.cpu.compile_worker", str(job)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * limits.seconds, check=False)
    except subprocess.TimeoutExpired:
        raise TargetError(f"native compilation took more than {2 * limits.seconds} s") from None
    if done.returncode == 0:
        return
    detail = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    if done.returncode == TargetError.exit_code:
        raise TargetError(detail)
    if done.returncode < 0:
        detail = f"killed by {signal.Signals(-done.returncode).name}; limits: {limits.seconds} s, {limits.memory} bytes"
    raise TargetError(f"native compilation failed: {detail}")


def _link(objects: Sequence[Path], exported: Sequence[str], folder: Path, path: Path) -> None:
    linker = shutil.which("ld")
    if linker is None:
        raise TargetError("no linker: the cpu target needs 'ld' (GNU binutils) on the PATH")
    script = folder / "exports.map"
    script.write_text(f"{{ global: {' '.join(f'{name};' for name in exported)} local: *; }};\n")
    flags = ["-shared", "--strip-all", "--gc-sections", "--build-id=none", "-z", "noexecstack", "-z", "relro"]
    command = [linker, *flags, f"--version-script={script}", "-o", str(path), *map(str, objects)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"linking failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:300]}")
