"""What the generated code takes on a processor: measured on the object file that its compiler makes."""

from __future__ import annotations

import shlex
import struct
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qcc.errors import TargetError
from qcc_targets.c.toolchain import compile_c
from qcc_targets.cpu.network import NETWORK

_EXECUTABLE: Final = 4
"""The flag SHF_EXECINSTR of an ELF section."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of machine code, and of the stack that one call takes at most; ``compiler`` is the command line.

    ``stack`` is None where the compiler does not tell. Neither counts the C library or the compiler's own
    support functions, such as 64-bit multiplication.
    """

    compiler: str
    code: int
    stack: int | None


def measure(compiler: str, level: str, source: Path, prefix: str) -> Footprint:
    """Compile ``source`` with ``compiler``, a command with flags, at ``level`` such as -Os. Raises TargetError."""
    command, *flags = shlex.split(compiler)
    with tempfile.TemporaryDirectory(prefix="qcc-footprint-") as scratch:
        built = Path(scratch) / "network.o"
        compile_c(command, source, built, (level, *flags, "-fstack-usage", "-c"))
        usage = built.with_suffix(".su")
        stack = stack_bytes(usage.read_text().splitlines(), prefix) if usage.exists() else None
        return Footprint(shlex.join([command, level, *flags]), code_bytes(built.read_bytes()), stack)


def code_bytes(elf: bytes) -> int:
    """The bytes of all executable sections of an ELF object, 32 or 64 bits. Raises TargetError on anything else."""
    if elf[:4] != b"\x7fELF" or elf[4] not in (1, 2) or elf[5] not in (1, 2):
        raise TargetError("the compiler of the option cross does not write ELF objects, the only ones measured here")
    wide, order = elf[4] == 2, "<" if elf[5] == 1 else ">"
    (table,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", elf, 0x28 if wide else 0x20)
    entry, count = struct.unpack_from(f"{order}HH", elf, 0x3A if wide else 0x2E)
    # The leading fields of a section header: name, type, flags, address, offset, size.
    fields = [
        struct.unpack_from(f"{order}II{'QQQQ' if wide else 'IIII'}", elf, table + entry * i) for i in range(count)
    ]
    return sum(size for _, _, flags, _, _, size in fields if flags & _EXECUTABLE)


def stack_bytes(usage: Iterable[str], prefix: str) -> int:
    """The deepest stack, from the lines that -fstack-usage writes: ``file:line:column:function<tab>bytes<tab>kind``.

    The public functions and the network's body call each other in turn; one kernel at a time is below them,
    and one support function below that.
    """
    rows = [line.split("\t") for line in usage]
    frames = {name.rpartition(":")[2]: int(size) for name, size, *_ in rows}
    outer = sum(frames.pop(name, 0) for name in (f"{prefix}_run", f"{prefix}_run_in", NETWORK))
    kernels = [size for name, size in frames.items() if name.startswith("qcc_kernel_")]
    support = [size for name, size in frames.items() if not name.startswith("qcc_kernel_")]
    return outer + max(kernels, default=0) + max(support, default=0)
