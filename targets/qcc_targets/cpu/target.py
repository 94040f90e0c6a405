"""The target ``cpu``: libraries for instruction sets, their constants, and their description."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator

from qcc.artifact.store import read_artifact
from qcc.errors import TargetError
from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import NARROW_BITS, Capabilities, Target, Tuned
from qcc.runtime.program import PROGRAM, Argument, Level, Program
from qcc.runtime.tvm_profile import profile
from qcc_targets.cpu.border import border_functions, bordered
from qcc_targets.cpu.child import Limits
from qcc_targets.cpu.compiler import Compiler, Unit, units
from qcc_targets.cpu.header import write_header
from qcc_targets.cpu.isa import LEVELS, Isa, available, resolve_all
from qcc_targets.cpu.lowering import MOVES, lower
from qcc_targets.cpu.network import NETWORK, Network, assemble
from qcc_targets.cpu.pieces import pieces
from qcc_targets.cpu.select import GENERIC
from qcc_targets.cpu.tuning import Tuning, tune


def listed(value: Any) -> Any:
    """``amx,avx2`` as a list."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


LAYERS: Final = ("iconv2d", "idense")
"""Operations with weights."""
HEADER: Final = "network.h"
REPORT: Final = "kernels.json"
"""What became of every step, by instruction set, the richest first."""


class CpuTarget(Target):
    """x86-64 and AArch64 processors, through TVM: a library per instruction set, one call per inference.

    ``isa`` lists levels of instruction sets, or ``native``: the artifact holds the network for each,
    and takes the richest that the machine has when it is loaded. ``mcpu`` is an LLVM processor name,
    which implies a level. ``batch`` samples are computed per call; up to ``threads`` threads can share
    a call, which takes more code. ``tuning`` is a table that ``qcc tune`` wrote. A compiling process may take
    ``seconds`` of processor time and ``memory_mib`` of memory.
    """

    name: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "tvm"

    isa: Annotated[tuple[str, ...], BeforeValidator(listed), Field(min_length=1)] = ("native",)
    mcpu: str | None = None
    batch: int = Field(default=1, ge=1, le=4096)
    threads: int = Field(default=1, ge=1, le=64)
    tuning: Path | None = Field(default=None, exclude=True)
    seconds: int = Field(default=600, ge=1)
    memory_mib: int = Field(default=8192, ge=512)

    _compiler: Compiler | None = PrivateAttr(None)

    @field_validator("isa")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [name for name in value if name not in ("native", *LEVELS)]:
            raise ValueError(f"unknown instruction set '{unknown[0]}'; known: native, {', '.join(LEVELS)}")
        return value

    @property
    def capabilities(self) -> Capabilities:
        ops = frozenset(GENERIC) | frozenset(MOVES)
        return Capabilities(ops=ops, weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def time_layers(self, artifact: Path) -> dict[str, float]:
        """See ``Target.time_layers``: medians over runs of the whole network."""
        steps = profile(read_artifact(artifact)).steps
        return {step.result: step.inside for step in steps if step.op in LAYERS}

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        levels = self._levels()
        compiler = self._started_compiler(ctx.threads)
        built, report = [], {}
        for number, isa in enumerate(levels):
            ctx.progress("kernels", number, len(levels))
            network = assemble(lower(graph, self.batch), isa, self.threads)
            built.append(_write_level(graph, self.batch, network, isa, compiler, out))
            report[isa.name] = [asdict(row) for row in network.report]
        ctx.progress("kernels", len(levels), len(levels))
        (out / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        (out / PROGRAM).write_bytes(describe(graph, built, levels[0].machine, self.batch, self.threads).to_bytes())
        quantized = {v.type.numpy.name for v in bordered(graph)}
        (out / HEADER).write_text(write_header(graph, self.batch, quantized, max(b.control for b in built)))
        return sorted(out.iterdir())

    def tune(self, graph: Graph, table: Path, ctx: PassContext) -> Sequence[Tuned]:
        """See ``Target.tune``: measures the blockings of contractions, for those instruction sets that run here."""
        here = {level.name for level in available()}
        steps = lower(graph, self.batch).steps
        levels = [level for level in resolve_all(self.isa, self.mcpu) if level.name in here]
        if not levels:
            raise TargetError(f"this machine runs none of {', '.join(self.isa)}: tune on one that does")
        limits = Limits(self.seconds, self.memory_mib << 20)
        sites = {
            level.name: [piece.site for step in steps for piece in pieces(step.site, self.threads, level)]
            for level in levels
        }
        return [tuned for level in levels for tuned in tune(sites[level.name], level, table, limits, ctx.progress)]

    def _levels(self) -> tuple[Isa, ...]:
        levels = resolve_all(self.isa, self.mcpu)
        if self.tuning is None:
            return levels
        table = Tuning.read(self.tuning)
        return tuple(map(table.of, levels))

    def _started_compiler(self, processes: int) -> Compiler:
        """One compiler for all that this target builds."""
        if self._compiler is None:
            self._compiler = Compiler(Limits(self.seconds, self.memory_mib << 20, processes))
        return self._compiler


def _write_level(graph: Graph, batch: int, network: Network, isa: Isa, compiler: Compiler, out: Path) -> Level:
    """Write the files of one instruction set; constants that another one has already are not written again."""
    functions = border_functions(graph, batch)
    level = describe_level(network, isa, bool(functions))
    write_library(network, isa, compiler, out / level.library)
    if level.border is not None:
        compiler.library([Unit(functions, floats=True)], list(functions), isa, out / level.border)
    for known in out.glob("constants-*.bin"):
        if known.read_bytes() == network.constants:
            return level.model_copy(update={"constants": known.name})
    (out / level.constants).write_bytes(network.constants)
    return level


def write_library(network: Network, isa: Isa, compiler: Compiler, path: Path) -> None:
    """Compile and link ``network`` into ``path``. Raises TargetError."""
    parts = [*units(network.functions), Unit(network.callers)]
    compiler.library(parts, list(network.callers), isa, path)


def describe_level(network: Network, isa: Isa, border: bool = False) -> Level:
    """What the runtime must know of one library."""
    return Level(
        isa=isa.name,
        flags=tuple(sorted(isa.flags)),
        library=f"network-{isa.name}.so",
        constants=f"constants-{isa.name}.bin",
        border=f"border-{isa.name}.so" if border else None,
        arena=network.arena,
        control=network.control,
    )


def describe(graph: Graph, levels: Sequence[Level], machine: str, batch: int, threads: int = 1) -> Program:
    """What the runtime must know of the network, whatever the instruction set."""
    return Program(
        entry=NETWORK,
        machine=machine,
        levels=tuple(levels),
        threads=threads,
        batch=batch,
        inputs=tuple(argument(v, batch) for v in graph.inputs),
        outputs=tuple(argument(v, batch) for v in graph.outputs),
    )


def argument(value: Value, batch: int) -> Argument:
    shape = value.type.shape
    fields = {
        "name": value.name,
        "shape": tuple(batch if d == BATCH else d for d in shape),
        "dtype": value.type.numpy.name,
        "batched": shape[:1] == (BATCH,),
    }
    return Argument.model_validate(fields)
