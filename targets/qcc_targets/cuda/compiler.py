"""CUDA source to machine code by NVRTC, which needs neither a GPU nor a driver nor a toolkit."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from qcc.errors import TargetError
from qcc_targets.cpu.child import Limits, run_shares

_LIBRARIES: Final = ("libnvrtc.so.12", "libnvrtc.so.13")
_WHEEL: Final = "nvidia.cuda_nvrtc"
_OPTIONS: Final = ("--std=c++17",)


def compile_images(source: str, images: Sequence[tuple[str, Path]], limits: Limits) -> None:
    """Compile ``source`` for every architecture (``sm_80``, ``compute_90``) into the file beside it.

    The compilers run in child processes, several at once. Raises TargetError where NVRTC is missing, refuses
    the source, crashes or exceeds its limits.
    """
    find_nvrtc()
    with tempfile.TemporaryDirectory(prefix="qcc-") as scratch:
        run_shares(partial(_compile_all, source), images, limits, Path(scratch))


def find_nvrtc() -> ctypes.CDLL:
    """NVRTC, from its wheel or else from where the system keeps libraries. Raises TargetError where it is missing."""
    for path in _candidates():
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    raise TargetError("no CUDA compiler: the cuda target needs NVRTC; install the extra qcc[cuda]")


def _candidates() -> Iterator[str]:
    try:
        spec = find_spec(_WHEEL)
    except ModuleNotFoundError:
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield from (str(Path(folder) / "lib" / name) for name in _LIBRARIES)
    yield from _LIBRARIES


def version() -> tuple[int, int]:
    """NVRTC's own. Raises TargetError where it is missing."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call(find_nvrtc(), "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _compile_all(source: str, images: Sequence[tuple[str, Path]]) -> None:
    for arch, path in images:
        path.write_bytes(compile_image(source, arch))


def compile_image(source: str, arch: str) -> bytes:
    """The cubin of ``source`` for ``sm_…``, its PTX for ``compute_…``. Raises TargetError."""
    nvrtc = find_nvrtc()
    program = ctypes.c_void_p()
    _call(nvrtc, "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"network.cu", 0, None, None)
    options = [o.encode() for o in (f"--gpu-architecture={arch}", *_OPTIONS)]
    if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
        lines = _text(nvrtc, "ProgramLog", program).decode(errors="replace").splitlines()
        reason = next((line for line in lines if "error" in line), "no reason given")
        raise TargetError(f"NVRTC refuses the source for {arch}: {reason[:250]}")
    image = _text(nvrtc, "CUBIN" if arch.startswith("sm_") else "PTX", program)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return image


def _text(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _call(nvrtc, f"nvrtcGet{what}Size", program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(nvrtc, f"nvrtcGet{what}", program, text)
    return text.raw


def _call(nvrtc: ctypes.CDLL, name: str, *arguments: Any) -> None:
    if status := nvrtc[name](*arguments):
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise TargetError(f"{name}: {nvrtc.nvrtcGetErrorString(status).decode()}")
