"""What a GPU's machine code really holds, read back by NVIDIA's disassembler."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from qcc.errors import TargetError

TENSOR: Final = "IMMA"
"""Integer products of matrices, on tensor cores."""
DOT: Final = "IDP"
"""Sums of four products of bytes."""

_TOOL = "nvdisasm"
_WHEELS: Final = ("nvidia.cu13", "nvidia.cu12")
_KERNEL: Final = re.compile(r"\s*\.section\s+\.text\.(\w+)")
_INSTRUCTION: Final = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)")


def instructions(cubin: Path) -> dict[str, Counter[str]]:
    """How often every instruction stands in the machine code of a cubin, without its modifiers, by kernel.

    Raises TargetError where there is no disassembler, or it cannot read the file.
    """
    done = subprocess.run([find_disassembler(), "-c", str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"cannot disassemble {cubin}: {done.stderr.strip()[:200]}")
    return count_instructions(done.stdout)


def count_instructions(disassembly: str) -> dict[str, Counter[str]]:
    """``instructions`` from the disassembler's text."""
    found: dict[str, Counter[str]] = {}
    counts: Counter[str] = Counter()
    for line in disassembly.splitlines():
        if kernel := _KERNEL.match(line):
            counts = found.setdefault(kernel[1], Counter())
        elif instruction := _INSTRUCTION.match(line):
            counts[instruction[1]] += 1
    return found


def count_of(counts: Mapping[str, int], instruction: str) -> int:
    """How often ``instruction`` stands there, whatever its size: ``IDP`` counts ``IDP4A``, too."""
    return sum(n for name, n in counts.items() if name.startswith(instruction))


def find_disassembler() -> str:
    """The path of nvdisasm, on the PATH or from its wheel. Raises TargetError where there is none."""
    if (found := shutil.which(_TOOL)) is not None:
        return found
    for wheel in _WHEELS:
        try:
            spec = find_spec(wheel)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (path := Path(folder) / "bin" / _TOOL).is_file():
                return str(path)
    raise TargetError(f"no disassembler: '{_TOOL}' is not on the PATH; install nvidia-cuda-nvdisasm")
