"""Forbidding AMX to a process, whatever libraries it loads."""

from __future__ import annotations

import ctypes
import platform
from typing import Final

from qcc.errors import ConfigError

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_FILTER_MODE: Final = 2
_ARCH_PRCTL: Final = 158
_GET_PERMISSION: Final = 0x1022
_REQUEST_PERMISSION: Final = 0x1023
_TILE_DATA: Final = 18
_NUMBER_AT: Final = 0
_FIRST_ARGUMENT_AT: Final = 16
_LOAD: Final = 0x20
_JUMP_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_ALLOW: Final = 0x7FFF0000
_FAIL_WITH_EPERM: Final = 0x00050001


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def forbid_amx() -> None:
    """Refuse this process, for good, the permission that Linux wants asked for before tiles are used.

    A filter of system calls fails the request, so that onnxruntime, OpenVINO and artifacts all find
    a processor without AMX. onnxruntime asks as it is imported, so that this comes first, and this module
    imports nothing that might. Raises ConfigError where the permission has been given, or the kernel takes no filter.
    """
    if platform.machine() != "x86_64":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    granted = ctypes.c_uint64()
    libc.syscall(ctypes.c_long(_ARCH_PRCTL), ctypes.c_long(_GET_PERMISSION), ctypes.byref(granted))
    if granted.value >> _TILE_DATA & 1:
        raise ConfigError("AMX has been allowed to this process already: forbid it before libraries are loaded")
    rows = (
        (_LOAD, 0, 0, _NUMBER_AT),
        (_JUMP_IF_EQUAL, 0, 3, _ARCH_PRCTL),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_JUMP_IF_EQUAL, 0, 1, _REQUEST_PERMISSION),
        (_RETURN, 0, 0, _FAIL_WITH_EPERM),
        (_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(rows), (_Instruction * len(rows))(*(_Instruction(*row) for row in rows)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program)):
        raise ConfigError(f"the operating system takes no filter of system calls (errno {ctypes.get_errno()})")
