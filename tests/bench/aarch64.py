"""Libraries for AArch64 on an emulated processor: their outputs, and how many instructions they take.

Needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.target import write_library

COMPILER: Final = "aarch64-linux-gnu-gcc"
EMULATOR: Final = "qemu-aarch64"
PROCESSOR: Final = {"neon": "cortex-a72", "dotprod": "neoverse-n1"}
"""What to emulate so that instructions of a richer level are refused; else all that the emulator has."""

_HOST: Final = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

void qcc_network({parameters});
void qcc_sizes(int64_t *, int64_t *);

static void *aligned(int64_t size) {{ return aligned_alloc(64, (size_t)(size + 128) / 64 * 64); }}

int main(int count, char **arguments)
{{
    int64_t constant_bytes, arena_bytes;
    qcc_sizes(&constant_bytes, &arena_bytes);
    void *constants = aligned(constant_bytes), *arena = aligned(arena_bytes);
    FILE *file = fopen(arguments[1], "rb");
    if (count != 2 || fread(constants, 1, (size_t)constant_bytes, file) != (size_t)constant_bytes) return 1;
    static const size_t in[] = {{{inputs}}}, out[] = {{{outputs}}};
    enum {{ IN = sizeof in / sizeof *in, OUT = sizeof out / sizeof *out }};
    void *x[IN], *y[OUT];
    for (int i = 0; i < IN; i++) x[i] = aligned((int64_t)in[i]);
    for (int i = 0; i < OUT; i++) y[i] = aligned((int64_t)out[i]);
    for (;;) {{
        for (int i = 0; i < IN; i++)
            if (fread(x[i], in[i], 1, stdin) != 1) return i != 0;
        qcc_network({arguments});
        for (int i = 0; i < OUT; i++)
            if (fwrite(y[i], out[i], 1, stdout) != 1) return 1;
    }}
}}
"""

_COUNTER: Final = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* What is used of QEMU's plug-in interface, version 1. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum { INLINE_ADD_U64 };
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);

int qemu_plugin_version = 1;
static uint64_t count;
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(tb, INLINE_ADD_U64, &count, qemu_plugin_tb_n_insns(tb));
}
static void ended(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    fprintf(stderr, "%llu\\n", (unsigned long long)count);
}
int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, ended, NULL);
    return 0;
}
"""


def missing() -> str | None:
    """What to say where the compiler or the emulator is not here."""
    if all(map(shutil.which, (COMPILER, EMULATOR))):
        return None
    return f"no {COMPILER} or {EMULATOR} here: install gcc-aarch64-linux-gnu, libc6-dev-arm64-cross and qemu-user"


@dataclass(frozen=True, slots=True)
class Emulated:
    """A compiled network with its host program, in ``folder``, for batches of ``batch``."""

    graph: Graph
    isa: Isa
    folder: Path
    batch: int = 1

    @property
    def library(self) -> Path:
        return self.folder / "libnetwork.so"

    def build(self, seconds: int = 120) -> Emulated:
        """Compile network and host."""
        network = assemble(lower(self.graph, self.batch), self.isa)
        write_library(network, self.isa, Compiler(), self.library)
        (self.folder / "constants.bin").write_bytes(network.constants)
        (self.folder / "host.c").write_text(_host(self.graph, self.batch))
        command = [COMPILER, "-O1", "-Wall", "-Wextra", "-Werror", "-o", "host", "host.c", "-L.", "-lnetwork"]
        subprocess.run([*command, f"-Wl,-rpath,{self.folder}"], cwd=self.folder, check=True, timeout=seconds)
        return self

    def run(self, inputs: Mapping[str, NDArray[Any]], seconds: int = 240) -> dict[str, NDArray[Any]]:
        """The output codes for codes [N, …], N a multiple of the batch."""
        arrays = [np.ascontiguousarray(inputs[v.name]) for v in self.graph.inputs]
        calls = len(arrays[0]) // self.batch
        rows = [a.reshape(calls, -1).view(np.uint8).reshape(calls, -1) for a in arrays]
        done = self._program((), np.concatenate(rows, axis=1).tobytes(), seconds)
        sizes = [_bytes(v, self.batch) for v in self.graph.outputs]
        parts = np.split(np.frombuffer(done.stdout, np.uint8).reshape(calls, -1), np.cumsum(sizes)[:-1], axis=1)
        return {
            v.name: np.ascontiguousarray(p).view(v.type.numpy).reshape(-1, *v.type.shape[1:])
            for v, p in zip(self.graph.outputs, parts, strict=True)
        }

    def instructions(self, seconds: int = 240) -> int:
        """Instructions that one call of the network takes."""
        plugin = self.folder / "counter.so"
        source = self.folder / "counter.c"
        source.write_text(_COUNTER)
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", plugin, source], check=True, timeout=seconds)
        sample = bytes(sum(_bytes(v, self.batch) for v in self.graph.inputs))
        counts = [
            int(self._program(("-plugin", str(plugin)), sample * calls, seconds).stderr.split()[-1]) for calls in (1, 3)
        ]
        return (counts[1] - counts[0]) // 2

    def _program(self, options: Sequence[str], data: bytes, seconds: int) -> subprocess.CompletedProcess[bytes]:
        processor = PROCESSOR.get(self.isa.name, "max")
        command = [EMULATOR, "-cpu", processor, *options, "-L", "/usr/aarch64-linux-gnu", "./host", "constants.bin"]
        return subprocess.run(command, cwd=self.folder, input=data, capture_output=True, check=True, timeout=seconds)


def run_emulated(graph: Graph, isa: Isa, inputs: Mapping[str, NDArray[Any]], batch: int = 1) -> dict[str, NDArray[Any]]:
    """The outputs of an integer ``graph`` for ``isa``, on an emulated processor."""
    with tempfile.TemporaryDirectory() as folder:
        return Emulated(graph, isa, Path(folder), batch).build().run(inputs)


def _bytes(value: Value, batch: int) -> int:
    shape = [batch if d == BATCH else d for d in value.type.shape]
    return int(np.prod(shape)) * value.type.numpy.itemsize


def _host(graph: Graph, batch: int) -> str:
    count = len(graph.inputs) + len(graph.outputs)
    names = [f"x[{i}]" for i in range(len(graph.inputs))] + [f"y[{i}]" for i in range(len(graph.outputs))]
    return _HOST.format(
        parameters=", ".join(["void *"] * (count + 2)),
        inputs=", ".join(str(_bytes(v, batch)) for v in graph.inputs),
        outputs=", ".join(str(_bytes(v, batch)) for v in graph.outputs),
        arguments=", ".join([*names, "constants", "arena"]),
    )
