"""A whole network as one function that calls its kernels in turn, with its constants in one blob.

The library's entry point is a plain C function:

    void qcc_network(input 0, …, output 0, …, constants, arena)

Its twin takes two more, and measures each step:

    void qcc_profile(input 0, …, output 0, …, constants, arena, stamps, repeats)

It runs every step ``repeats`` times in a row and writes the processor's time-stamp counter before the
first step and behind each; ``stamps`` [steps + 1] are int64.

All arguments but ``repeats`` are pointers. Inputs and outputs hold dense arrays in logical order,
aligned to their elements; ``constants`` is the blob, ``arena`` memory that no other call uses at the
same time; both are 64-byte aligned. Their sizes, in bytes, tells

    void qcc_sizes(constants, arena)

through two pointers to int64. Where the network was divided among threads, there is also ``qcc_share``
(see ``share``), which several threads call at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Final

import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.runtime.tvm_network import PEAK, PROFILE, SHARE
from qcc_targets.cpu.cost import operations, traffic
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, Kernel
from qcc_targets.cpu.lowering import Lowered, Space, Step
from qcc_targets.cpu.memory import ROOMY, MemoryPlan, Padding, plan
from qcc_targets.cpu.peak import peak_function
from qcc_targets.cpu.pieces import Piece, pieces
from qcc_targets.cpu.select import select
from qcc_targets.cpu.share import CONTROL_BYTES, Steps

NETWORK: Final = "qcc_network"
SIZES: Final = "qcc_sizes"


@dataclass(frozen=True, slots=True)
class ReportRow:
    """What one step became: its operation and result, the kernel's name, the function that it calls.

    ``operations`` counts multiplications and additions, ``bytes`` what is read and written at least once,
    ``constants`` the bytes of its constants, weights packed as the kernel reads them.
    """

    op: str
    result: str
    kernel: str
    function: str
    operations: int
    bytes: int
    constants: int


@dataclass(frozen=True, slots=True)
class Network:
    """Everything that a library is compiled from, and what it needs at run time.

    ``functions`` maps symbols to distinct kernels; ``callers`` are the exported functions:
    ``qcc_network``, where time stamps can be read ``qcc_profile`` and ``qcc_peak``, the sizes, and for
    several threads ``qcc_share``, which works in ``control`` bytes more.
    """

    functions: dict[str, tirx.PrimFunc]
    callers: dict[str, tirx.PrimFunc]
    constants: bytes
    arena: int
    control: int
    report: tuple[ReportRow, ...]


def assemble(lowered: Lowered, isa: Isa, threads: int = 1, padding: Padding = ROOMY) -> Network:
    """Select kernels, plan memory, and write the functions; ``threads`` may share one call. Raises TargetError."""
    steps = [_Divided(step, pieces(step.site, threads, isa), isa) for step in lowered.steps]
    memory = plan(lowered, [step.whole for step in steps], padding)
    symbols = Symbols()
    blob, starts = joined([kernel.constants for step in steps for kernel in step.kernels], padding)
    following = iter(starts)
    calls = [
        [
            _Call(symbols.name(kernel.func), step.step, piece, next(following), scratch + offset)
            for piece, kernel, offset in zip(step.pieces, step.kernels, step.scratch, strict=True)
        ]
        for step, scratch in zip(steps, memory.scratch, strict=True)
    ]
    report = tuple(
        _row(call, kernel)
        for step, together in zip(steps, calls, strict=True)
        for call, kernel in zip(together, step.kernels, strict=True)
    )
    callers = {NETWORK: _network(lowered, memory, calls, _InTurn()), SIZES: _sizes(len(blob), memory.size)}
    if isa.machine == "x86_64":
        callers[PROFILE] = _network(lowered, memory, calls, _Stopwatch())
        if (peak := peak_function(isa)) is not None:
            callers[PEAK] = peak
    shared = threads > 1 and any(len(together) > 1 for together in calls)
    if shared:
        callers[SHARE] = _network(lowered, memory, calls, _Shared(isa.machine))
    control = CONTROL_BYTES * len(calls) if shared else 0
    return Network(symbols.functions, callers, blob, memory.size, control, report)


class _Divided:
    """A step's pieces with their kernels; ``whole`` stands for all of them in the plan of memory."""

    def __init__(self, step: Step, parts: Sequence[Piece], isa: Isa) -> None:
        self.step, self.pieces = step, parts
        self.kernels = [select(piece.site, isa) for piece in parts]
        sizes = [-(-kernel.scratch // ALIGN) * ALIGN for kernel in self.kernels]
        self.scratch = [sum(sizes[:i]) for i in range(len(sizes))]
        inplace = [slot for slot in self.kernels[0].inplace if all(slot in k.inplace for k in self.kernels)]
        scratch = sum(sizes) if len(sizes) > 1 else self.kernels[0].scratch
        self.whole = replace(self.kernels[0], scratch=scratch, inplace=tuple(inplace))


def _row(call: _Call, kernel: Kernel) -> ReportRow:
    site = call.piece.site
    return ReportRow(
        site.op.kind,
        site.op.result.name,
        kernel.name,
        call.symbol,
        operations(site),
        traffic(site, kernel),
        len(kernel.constants),
    )


class Symbols:
    """Names for functions; equal functions get one name."""

    def __init__(self) -> None:
        self.functions: dict[str, tirx.PrimFunc] = {}
        self._by_hash: dict[int, list[str]] = {}

    def name(self, func: tirx.PrimFunc) -> str:
        known = self._by_hash.setdefault(tvm_ffi.structural_hash(func), [])
        for symbol in known:
            if tvm_ffi.structural_equal(self.functions[symbol], func):
                return symbol
        symbol = f"qcc_kernel_{len(self.functions)}"
        self.functions[symbol] = func
        known.append(symbol)
        return symbol


@dataclass(frozen=True, slots=True)
class _Call:
    symbol: str
    step: Step
    piece: Piece
    constants: int
    scratch: int


def joined(parts: Sequence[bytes], padding: Padding) -> tuple[bytes, list[int]]:
    """All constants, each aligned and equal ones once, with slack behind; and where each begins."""
    blob = bytearray()
    known: dict[bytes, int] = {}
    starts = []
    for part in parts:
        if part not in known:
            blob.extend(b"\0" * (-len(blob) % padding.align))
            known[part] = len(blob)
            blob.extend(part)
        starts.append(known[part])
    return bytes(blob) + b"\0" * padding.slack, starts


class _InTurn:
    """The body of ``qcc_network``: one call after another."""

    name = NETWORK

    def declare(self) -> Any:
        """The further parameters; returns the scope of the body."""
        return nullcontext()

    def step(self, calls: Sequence[Any]) -> None:
        for call in calls:
            T.evaluate(call)


class _Shared:
    """The body of ``qcc_share``."""

    name = SHARE

    def __init__(self, machine: str) -> None:
        self._machine = machine

    def declare(self) -> Any:
        self._steps = Steps(self._machine, T.arg("control", tirx.Var("control", PointerType(PrimType("int32")))))
        return self._steps.imported()

    def step(self, calls: Sequence[Any]) -> None:
        self._steps.step(calls)


class _Stopwatch:
    """The body of ``qcc_profile``."""

    name = PROFILE

    def declare(self) -> Any:
        stamps = T.arg("stamps", tirx.Var("stamps", PointerType(PrimType("int64"))))
        self._repeats = T.arg("repeats", tirx.Var("repeats", "int64"))
        self._stamps = T.decl_buffer((1 << 40,), "int64", data=stamps, layout=None)
        self._number = 0
        self._stamp()
        return nullcontext()

    def step(self, calls: Sequence[Any]) -> None:
        for call in calls:
            with T.serial(T.int64(0), self._repeats):
                T.evaluate(call)
            self._stamp()

    def _stamp(self) -> None:
        counter = tirx.call_llvm_intrin("int64", "llvm.readcyclecounter")
        T.buffer_store(self._stamps, counter, [T.int64(self._number)])
        self._number += 1


def _network(
    lowered: Lowered, memory: MemoryPlan, steps: Sequence[Sequence[_Call]], body: _InTurn | _Shared | _Stopwatch
) -> tirx.PrimFunc:
    external = [(s.space, s.index) for s in lowered.storages if s.space is not Space.ARENA]
    inputs = sorted(index for space, index in external if space is Space.INPUT)
    outputs = sorted(index for space, index in external if space is Space.OUTPUT)
    names = [*(f"input{i}" for i in inputs), *(f"output{i}" for i in outputs), "constants", "arena"]
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(body.name)
        T.func_attr({"tirx.noalias": False})
        pointers = {name: T.arg(name, tirx.Var(name, PointerType(PrimType("uint8")))) for name in names}
        scope = body.declare()
        bytes_of = {name: T.decl_buffer((1 << 40,), "uint8", data=p, layout=None) for name, p in pointers.items()}

        def at(storage: int, distance: int) -> Any:
            offset, block = memory.storages[storage], lowered.storages[storage]
            if offset is None:
                name = f"{block.space.value}{block.index}"
                return tirx.address_of(bytes_of[name][T.int64(distance)]) if distance else pointers[name]
            return tirx.address_of(bytes_of["arena"][T.int64(offset + distance)])

        def written(call: _Call) -> Any:
            sources = zip(call.step.inputs, call.piece.inputs, strict=True)
            arguments = [
                *(at(storage, distance) for storage, distance in sources),
                tirx.address_of(bytes_of["constants"][T.int64(call.constants)]),
                at(call.step.output, call.piece.output),
                tirx.address_of(bytes_of["arena"][T.int64(call.scratch)]),
            ]
            return tirx.call_extern("void", call.symbol, *arguments)

        with scope:
            for together in steps:
                body.step([written(call) for call in together])
    return ib.get()


def _sizes(constants: int, arena: int) -> tirx.PrimFunc:
    """The function that stores both sizes."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(SIZES)
        sizes = {"constants": constants, "arena": arena}
        pointers = [T.arg(name, tirx.Var(name, PointerType(PrimType("int64")))) for name in sizes]
        for pointer, size in zip(pointers, sizes.values(), strict=True):
            T.buffer_store(T.decl_buffer((1,), "int64", data=pointer, layout=None), T.int64(size), [0])
    return ib.get()
