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

through two pointers to int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import tvm_ffi
from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.runtime.tvm_network import PEAK, PROFILE
from qcc_targets.cpu.cost import operations, traffic
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, SLACK
from qcc_targets.cpu.lowering import Lowered, Space, Step
from qcc_targets.cpu.memory import MemoryPlan, plan
from qcc_targets.cpu.peak import peak_function
from qcc_targets.cpu.select import select

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
    ``qcc_network``, where time stamps can be read ``qcc_profile`` and ``qcc_peak``, and the sizes.
    """

    functions: dict[str, tirx.PrimFunc]
    callers: dict[str, tirx.PrimFunc]
    constants: bytes
    arena: int
    report: tuple[ReportRow, ...]


def assemble(lowered: Lowered, isa: Isa) -> Network:
    """Select kernels, plan memory, and write the functions. Raises TargetError."""
    kernels = [select(step.site, isa) for step in lowered.steps]
    memory = plan(lowered, kernels)
    symbols = _Symbols()
    names = [symbols.name(kernel.func) for kernel in kernels]
    blob, starts = _blob([kernel.constants for kernel in kernels])
    calls = [
        _Call(name, step, start, scratch)
        for name, step, start, scratch in zip(names, lowered.steps, starts, memory.scratch, strict=True)
    ]
    report = tuple(
        ReportRow(
            step.site.op.kind,
            step.site.op.result.name,
            kernel.name,
            name,
            operations(step.site),
            traffic(step.site, kernel),
            len(kernel.constants),
        )
        for step, kernel, name in zip(lowered.steps, kernels, names, strict=True)
    )
    callers = {
        NETWORK: _network(lowered, memory, calls),
        SIZES: _sizes(len(blob), memory.size),
    }
    if isa.machine == "x86_64":
        callers[PROFILE] = _network(lowered, memory, calls, timed=True)
        if (peak := peak_function(isa)) is not None:
            callers[PEAK] = peak
    return Network(symbols.functions, callers, blob, memory.size, report)


class _Symbols:
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
    constants: int
    scratch: int


def _blob(parts: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """All constants, each aligned and equal ones once, with slack behind; and where each begins."""
    blob = bytearray()
    known: dict[bytes, int] = {}
    starts = []
    for part in parts:
        if part not in known:
            blob.extend(b"\0" * (-len(blob) % ALIGN))
            known[part] = len(blob)
            blob.extend(part)
        starts.append(known[part])
    return bytes(blob) + b"\0" * SLACK, starts


def _network(lowered: Lowered, memory: MemoryPlan, calls: Sequence[_Call], *, timed: bool = False) -> tirx.PrimFunc:
    external = [(s.space, s.index) for s in lowered.storages if s.space is not Space.ARENA]
    inputs = sorted(index for space, index in external if space is Space.INPUT)
    outputs = sorted(index for space, index in external if space is Space.OUTPUT)
    names = [*(f"input{i}" for i in inputs), *(f"output{i}" for i in outputs), "constants", "arena"]
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(PROFILE if timed else NETWORK)
        T.func_attr({"tirx.noalias": False})
        pointers = {name: T.arg(name, tirx.Var(name, PointerType(PrimType("uint8")))) for name in names}
        stopwatch = _Stopwatch.declared() if timed else None
        bytes_of = {name: T.decl_buffer((1 << 40,), "uint8", data=p, layout=None) for name, p in pointers.items()}

        def at(storage: int) -> Any:
            offset, block = memory.storages[storage], lowered.storages[storage]
            if offset is None:
                return pointers[f"{block.space.value}{block.index}"]
            return tirx.address_of(bytes_of["arena"][T.int64(offset)])

        if stopwatch is not None:
            stopwatch.stamp(0)
        for number, call in enumerate(calls):
            arguments = [
                *(at(storage) for storage in call.step.inputs),
                tirx.address_of(bytes_of["constants"][T.int64(call.constants)]),
                at(call.step.output),
                tirx.address_of(bytes_of["arena"][T.int64(call.scratch)]),
            ]
            step = tirx.call_extern("void", call.symbol, *arguments)
            if stopwatch is None:
                T.evaluate(step)
            else:
                stopwatch.measure(number, step)
    return ib.get()


@dataclass(frozen=True, slots=True)
class _Stopwatch:
    stamps: Any
    repeats: Any

    @classmethod
    def declared(cls) -> _Stopwatch:
        """The further parameters of the function under construction."""
        stamps = T.arg("stamps", tirx.Var("stamps", PointerType(PrimType("int64"))))
        repeats = T.arg("repeats", tirx.Var("repeats", "int64"))
        return cls(T.decl_buffer((1 << 40,), "int64", data=stamps, layout=None), repeats)

    def stamp(self, number: int) -> None:
        counter = tirx.call_llvm_intrin("int64", "llvm.readcyclecounter")
        T.buffer_store(self.stamps, counter, [T.int64(number)])

    def measure(self, number: int, step: Any) -> None:
        with T.serial(T.int64(0), self.repeats):
            T.evaluate(step)
        self.stamp(number + 1)


def _sizes(constants: int, arena: int) -> tirx.PrimFunc:
    """The function that stores both sizes."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(SIZES)
        sizes = {"constants": constants, "arena": arena}
        pointers = [T.arg(name, tirx.Var(name, PointerType(PrimType("int64")))) for name in sizes]
        for pointer, size in zip(pointers, sizes.values(), strict=True):
            T.buffer_store(T.decl_buffer((1,), "int64", data=pointer, layout=None), T.int64(size), [0])
    return ib.get()
