"""What this machine's processor has, and the permission that AMX needs."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Final

from qcc.errors import ArtifactError

_FIELDS: Final = {"x86_64": "flags", "aarch64": "Features"}
"""The field of /proc/cpuinfo that lists features, by processor family."""

_SYS_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18


def processor_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The features that Linux lists for the first processor; empty where it cannot say."""
    wanted = _FIELDS.get(platform.machine())
    if wanted is None or not cpuinfo.exists():
        return frozenset()
    for line in cpuinfo.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == wanted:
            return frozenset(value.split())
    return frozenset()


def request_amx() -> None:
    """Ask Linux for the use of tile registers, once per process; without it their first use is fatal.

    Raises ArtifactError when the kernel refuses.
    """
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    if syscall(ctypes.c_long(_SYS_ARCH_PRCTL), ctypes.c_long(_ARCH_REQ_XCOMP_PERM), ctypes.c_long(_XFEATURE_XTILEDATA)):
        raise ArtifactError(f"the operating system refuses AMX tiles (errno {ctypes.get_errno()}): compile for avx512")
