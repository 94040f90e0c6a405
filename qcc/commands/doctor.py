"""``qcc doctor``."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import typer

from qcc.commands.console import out, print_json, print_table, size
from qcc.commands.options import JsonFlag
from qcc.errors import QccError

PACKAGES: Final = ("qcc", "numpy", "pydantic", "onnx", "onnxruntime", "apache-tvm", "apache-tvm-ffi", "safetensors")
TOOLS: Final = ("cc", "gcc", "clang", "nvcc")
FEATURES: Final = ("avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_tile", "amx_int8", "asimddp", "i8mm")


def doctor_command(as_json: JsonFlag = False) -> None:
    """Say what this machine can compile for and run, by compiling and running a small graph for every target.

    qcc doctor
    """
    report = {
        "system": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": cpu_model(),
            "processors": os.cpu_count() or 1,
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "features": [f for f in FEATURES if f in cpu_flags()],
        },
        "packages": {name: _version(name) for name in PACKAGES},
        "tools": {name: shutil.which(name) for name in TOOLS},
        "programs": _programs(),
        "targets": _check_targets(),
    }
    if as_json:
        print_json(report)
    else:
        _print(report)


def cpu_flags() -> frozenset[str]:
    """The processor's features as the kernel names them; empty where it does not say."""
    return frozenset(_cpuinfo("flags").split() or _cpuinfo("Features").split())


def cpu_model() -> str:
    return _cpuinfo("model name") or platform.machine()


def _cpuinfo(field: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _programs() -> dict[str, list[dict[str, Any]]]:
    """What targets can use, by target; one that does not load is reported with the targets."""
    from qcc.discovery import discover
    from qcc.passmgr.plugins import TARGETS, make_target

    found: dict[str, list[dict[str, Any]]] = {}
    with suppress(QccError):
        for name in sorted(discover(TARGETS)):
            with suppress(QccError, ImportError):
                found[name] = [asdict(program) for program in make_target(name).programs()]
    return {name: programs for name, programs in found.items() if programs}


def _check_targets() -> dict[str, str]:
    """``ok``, or why not, by target."""
    try:
        from qcc.discovery import discover
        from qcc.passmgr.plugins import TARGETS

        found: dict[str, str] = {}
        for name in sorted(discover(TARGETS)):
            found |= _check_target(name)
    except (QccError, ImportError) as e:
        return {"*": f"{type(e).__name__}: {e}"}
    return found


def _check_target(name: str) -> dict[str, str]:
    """Whether the target's artifacts run, and with what stands for its devices."""
    try:
        from qcc.passmgr.plugins import make_target
        from qcc.runtime.backend import named_devices
        from qcc.trial import try_target

        target = make_target(name)
        devices = {name: None, **{f"{name}, device {d}": d for d in named_devices(target.backend)}}
    except (QccError, ImportError) as e:
        return {name: " ".join(str(e).split())}
    found = dict.fromkeys(devices, "ok")
    for what, device in devices.items():
        try:
            try_target(target, device)
        except (QccError, ImportError) as e:
            found[what] = " ".join(str(e).split())
    return found


def _print(report: Mapping[str, Any]) -> None:
    system = report["system"]
    console = out()
    console.print(f"{system['platform']}, Python {system['python']}", markup=False)
    console.print(
        f"{system['processor']}, {system['processors']} processors, {size(system['memory_bytes'])}", markup=False
    )
    console.print(f"features  {' '.join(system['features']) or 'none that matter'}\n", markup=False)
    print_table("", ("package", "version"), [(n, v or "missing") for n, v in report["packages"].items()])
    typer.echo()
    print_table("", ("tool", "path"), [(n, p or "missing") for n, p in report["tools"].items()])
    typer.echo()
    rows = [
        (target, p["name"], p["purpose"], p["path"] or f"missing: {p['install']}")
        for target, programs in report["programs"].items()
        for p in programs
    ]
    if rows:
        print_table("", ("target", "program", "what it does", "path"), rows)
        typer.echo()
    print_table("", ("target", "compiles and runs here"), report["targets"].items())
