"""Compiling C in a child process with limits."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qcc.errors import TargetError

STRICT: Final = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
"""Flags that the generated code compiles under without a warning."""


def compile_c(cc: str, source: Path, output: Path, flags: Sequence[str], seconds: int = 600) -> None:
    """Run ``cc`` on ``source``. Raises TargetError when it is missing, fails or takes too long."""
    found = shutil.which(cc)
    if found is None:
        raise TargetError(f"no C compiler '{cc}' on the PATH; install one, or set the option cc")
    run_compiler([found, *STRICT, *flags, "-o", output.name, str(source)], output.parent, seconds)


def run_compiler(command: Sequence[str], folder: Path, seconds: int = 600) -> None:
    """Run ``command`` in ``folder``, with limits. Raises TargetError when it fails or takes too long."""
    name = Path(command[0]).name

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=2 * seconds,
            check=False,
            preexec_fn=limit,
        )
    except subprocess.TimeoutExpired:
        raise TargetError(f"{name} took more than {2 * seconds} s") from None
    if done.returncode:
        detail = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
        raise TargetError(f"{name} failed on the generated code: {detail}")
