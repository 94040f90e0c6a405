"""The target ``cpu``: a library, its constants, and their description, for one instruction set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar

from pydantic import Field, PrivateAttr, field_validator

from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import NARROW_BITS, Capabilities, Target
from qcc.runtime.program import BORDER, CONSTANTS, LIBRARY, PROGRAM, Argument, Program
from qcc_targets.cpu.border import border_functions
from qcc_targets.cpu.compiler import Compiler, Limits, Unit, units
from qcc_targets.cpu.isa import LEVELS, Isa, resolve
from qcc_targets.cpu.lowering import MOVES, lower
from qcc_targets.cpu.network import ENTRY, Network, assemble
from qcc_targets.cpu.select import GENERIC

REPORT = "kernels.json"


class CpuTarget(Target):
    """x86-64 processors, through TVM: one library per instruction set, one call per inference.

    ``isa`` is a level of instruction set or ``native``; ``mcpu`` an LLVM processor name, which
    implies a level. ``batch`` samples are computed per call. A compiling process may take
    ``seconds`` of processor time and ``memory_mib`` of memory.
    """

    name: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "tvm"

    isa: str = "native"
    mcpu: str | None = None
    batch: int = Field(default=1, ge=1, le=4096)
    seconds: int = Field(default=600, ge=1)
    memory_mib: int = Field(default=8192, ge=512)

    _compiler: Compiler | None = PrivateAttr(None)

    @field_validator("isa")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("native", *LEVELS):
            raise ValueError(f"unknown instruction set '{value}'; known: native, {', '.join(LEVELS)}")
        return value

    @property
    def capabilities(self) -> Capabilities:
        ops = frozenset(GENERIC) | frozenset(MOVES)
        return Capabilities(ops=ops, weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        isa = resolve(self.isa, self.mcpu)
        ctx.progress("kernels", 0, 2)
        network = assemble(lower(graph, self.batch), isa)
        ctx.progress("kernels", 1, 2)
        write_library(network, isa, self._started_compiler(ctx.threads), out / LIBRARY)
        written = [LIBRARY, CONSTANTS, PROGRAM, REPORT]
        if border := border_functions(graph):
            unit = Unit(border, packed=True, floats=True)
            self._started_compiler(ctx.threads).library([unit], ("__tvm_ffi_*",), isa, out / BORDER)
            written.append(BORDER)
        (out / CONSTANTS).write_bytes(network.constants)
        (out / PROGRAM).write_bytes(describe(graph, network, isa, self.batch).to_bytes())
        (out / REPORT).write_text(json.dumps([asdict(row) for row in network.report], indent=1) + "\n")
        ctx.progress("kernels", 2, 2)
        return [out / name for name in written]

    def _started_compiler(self, processes: int) -> Compiler:
        """One compiler for all that this target builds: its processes load TVM once."""
        if self._compiler is None:
            self._compiler = Compiler(Limits(self.seconds, self.memory_mib << 20, processes))
        return self._compiler


def write_library(network: Network, isa: Isa, compiler: Compiler, path: Path) -> None:
    """Compile and link ``network`` into ``path``. Raises TargetError."""
    parts = [
        *units(network.functions),
        Unit(network.callers),
        Unit(network.entries, packed=True),
    ]
    compiler.library(parts, (*network.callers, "__tvm_ffi_*"), isa, path)


def describe(graph: Graph, network: Network, isa: Isa, batch: int) -> Program:
    """What the runtime must know of the library."""
    return Program(
        entry=ENTRY,
        machine=isa.triple.partition("-")[0],
        isa=isa.name,
        flags=tuple(sorted(isa.flags)),
        batch=batch,
        arena=network.arena,
        inputs=tuple(_argument(v, batch) for v in graph.inputs),
        outputs=tuple(_argument(v, batch) for v in graph.outputs),
    )


def _argument(value: Value, batch: int) -> Argument:
    shape = value.type.shape
    fields = {
        "name": value.name,
        "shape": tuple(batch if d == BATCH else d for d in shape),
        "dtype": value.type.numpy.name,
        "batched": shape[:1] == (BATCH,),
    }
    return Argument.model_validate(fields)
