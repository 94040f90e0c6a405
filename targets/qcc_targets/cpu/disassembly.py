"""What a compiled library really holds, read back from its machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from qcc.errors import TargetError

_OPERATIONS: Final = "|".join(
    (
        "add|sub|mul|div|sqrt|min|max|minmax|hadd|hsub|addsub|dp",
        r"rcp\w*|rsqrt\w*|round|rndscale|reduce|range|scalef|getexp|getmant|fixupimm|fpclass",
        r"cmp\w*|comi|ucomi|fn?m(?:add|sub|addsub|subadd)\w*",
    )
)
_FLOAT: Final = re.compile(
    rf"v?(?:{_OPERATIONS})(?:ps|pd|ss|sd|ph|sh|pbf16|bf16)[xyz]?"  # SSE to AVX-512
    r"|v?cvt\w+|v?dpbf16ps|tdp(?:bf16|fp16)ps|tcmm\w+"
    r"|f(?!s$)[a-z]\w*"  # x87
)
"""x86 mnemonics that compute with, compare or convert floating-point numbers. Moves, shuffles and
bitwise operations are not among them: compilers use their floating-point spellings on integers too."""

_LINE: Final = re.compile(r"\s*[0-9a-f]+:\s+(?:(?:lock|rep\w*|data16|notrack|bnd|\{\w+\})\s+)*([a-z]\w*)(.*)")


def float_instructions(library: Path) -> list[str]:
    """The floating-point instructions in the machine code of an x86-64 library; empty: it has none.

    Raises TargetError where there is no ``objdump`` to read it, or it cannot.
    """
    objdump = shutil.which("objdump")
    if objdump is None:
        raise TargetError("no disassembler: 'objdump' (GNU binutils) is not on the PATH")
    command = [objdump, "--disassemble", "--no-show-raw-insn", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(f"cannot disassemble {library}: {done.stderr.strip()[:200]}")
    return float_lines(done.stdout)


def float_lines(disassembly: str) -> list[str]:
    """The instructions in ``objdump`` text that compute with floating point."""
    matches = (_LINE.match(line) for line in disassembly.splitlines())
    return [f"{m[1]}{m[2]}".strip() for m in matches if m and _FLOAT.fullmatch(m[1])]
