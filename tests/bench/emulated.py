"""The C target's sources on emulated 32-bit Arm: a program around them that maps inputs to outputs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc_targets.c.source import identifier
from qcc_targets.c.target import HEADER, SOURCE
from qcc_targets.c.toolchain import STRICT

COMPILER: Final = "arm-linux-gnueabihf-gcc"
EMULATOR: Final = "qemu-arm"
CORTEX_M4: Final = f"{COMPILER} -mcpu=cortex-m4 -mthumb -mfpu=fpv4-sp-d16"
"""What code and stack are measured with. The emulator runs Linux programs, so not for this very processor."""

FLAGS: Final = {"arm": ("-O2", "-marm"), "thumb": ("-Os", "-mthumb")}

_HOST: Final = """
#include "network.h"
#include <stdio.h>

static {input} input[{inputs}];
static {output} output[{outputs}];

int main(void)
{{
    while (fread(input, sizeof input, 1, stdin) == 1) {{
        {prefix}_run(input, output);
        if (fwrite(output, sizeof output, 1, stdout) != 1) return 1;
    }}
    return 0;
}}
"""


def missing() -> str | None:
    """What to say where the compiler or the emulator is not here."""
    if all(map(shutil.which, (COMPILER, EMULATOR))):
        return None
    return f"no {COMPILER} or {EMULATOR} here: install gcc-arm-linux-gnueabihf, libc6-dev-armhf-cross and qemu-user"


def run_emulated(
    graph: Graph, device: Path, codes: NDArray[Any], flags: tuple[str, ...] = FLAGS["thumb"], seconds: int = 120
) -> NDArray[Any]:
    """The output codes of ``graph`` (one input, one output) for a batch of ``codes``, by the sources in ``device``."""
    (x,), (y,) = graph.inputs, graph.outputs
    fields = {
        "prefix": identifier(graph.name),
        "input": f"{x.type.numpy.name}_t",
        "inputs": int(np.prod(x.type.shape[1:])),
        "output": f"{y.type.numpy.name}_t",
        "outputs": int(np.prod(y.type.shape[1:])),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name in (HEADER, SOURCE):
            shutil.copy(device / name, scratch)
        (Path(scratch) / "host.c").write_text(_HOST.format(**fields))
        command = [COMPILER, *STRICT, *flags, "-static", "-o", "host", SOURCE, "host.c"]
        subprocess.run(command, cwd=scratch, check=True, timeout=seconds)
        program = [EMULATOR, str(Path(scratch) / "host")]
        done = subprocess.run(program, input=codes.tobytes(), stdout=subprocess.PIPE, check=True, timeout=seconds)
    return np.frombuffer(done.stdout, y.type.numpy).reshape(len(codes), *y.type.shape[1:])
