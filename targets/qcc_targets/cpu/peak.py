"""A function that shows how fast this processor multiplies at best, by the instructions that the kernels use.

    void qcc_peak(scratch, stamps)

``scratch`` is ``PEAK_SCRATCH`` bytes, 64-byte aligned. ``stamps`` [3] int64 receive the time-stamp counter
before and after many independent products of registers, and how many operations they were.
"""

from __future__ import annotations

from typing import Any, Final

from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.runtime.tvm_network import PEAK
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import PLAIN
from qcc_targets.cpu.simd import emit, tiles
from qcc_targets.cpu.simd.dot import Dot
from qcc_targets.cpu.simd.emit import Memory

_TIMES: Final = 4000
_TILES: Final = 4
_VECTORS: Final = 10
"""Independent chains of products, enough to hide the latency of one."""


def peak_function(isa: Isa) -> tirx.PrimFunc | None:
    """``qcc_peak`` for ``isa``, or None where no template multiplies with instructions of its own."""
    if "avx2" not in isa:
        return None
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(PEAK)
        T.func_attr({"tirx.noalias": True, PLAIN: True})
        scratch, stamps = (
            T.arg(name, tirx.Var(name, PointerType(PrimType(dtype))))
            for name, dtype in (("scratch", "uint8"), ("stamps", "int64"))
        )
        times = T.decl_buffer((3,), "int64", data=stamps, layout=None)
        operations = _tile_products(scratch, times) if "amx" in isa else _dot_products(isa, scratch, times)
        T.buffer_store(times, T.int64(operations), [2])
    return ib.get()


def _stamp(times: Any, number: int) -> None:
    T.buffer_store(times, tirx.call_llvm_intrin("int64", "llvm.readcyclecounter"), [number])


def _tile_products(scratch: Any, times: Any) -> int:
    memory = emit.memory(scratch, "uint8")
    registers = tiles.Registers(2, 2)
    config = tiles.configuration(registers, tiles.ROWS, tiles.ROW_BYTES, (tiles.ROWS, tiles.ROWS))
    for index, byte in enumerate(config.tolist()):
        emit.store(memory, index, tirx.IntImm("uint8", byte), 1)
    tiles.configure(memory, 0)
    for number in range(registers.used):
        tiles.zero(number)
    _stamp(times, 0)
    with T.serial(0, _TIMES):
        for row in range(2):
            for column in range(2):
                accumulator = registers.accumulator(row, column)
                tiles.multiply(accumulator, registers.left(row), registers.right(column), signed=False)
    _stamp(times, 1)
    tiles.release()
    return 2 * _TIMES * _TILES * tiles.ROWS * tiles.ROWS * tiles.ROW_BYTES


def _dot_products(isa: Isa, scratch: Any, times: Any) -> int:
    dot = Dot(isa)
    words = emit.memory(scratch, "int32")
    chains = [emit.local("int32", dot.lanes) for _ in range(_VECTORS)]
    a = dot.operand(emit.load(words, 0, dot.lanes))
    for number, chain in enumerate(chains):
        emit.store(chain, 0, emit.load(words, (number + 1) * dot.lanes, dot.lanes), dot.lanes)
    _stamp(times, 0)
    with T.serial(0, _TIMES):
        for chain in chains:
            total = emit.load(chain, 0, dot.lanes)
            # The sum itself as a factor: LLVM would find products that repeat, and compute them once.
            b = emit.bits(f"{dot.dtype}x{dot.size() // dot.vectors}", total)
            emit.store(chain, 0, dot.add(total, a, (b,) * dot.vectors), dot.lanes)
    _stamp(times, 1)
    _keep(words, chains, dot.lanes)
    return 2 * _TIMES * _VECTORS * dot.lanes * 4


def _keep(words: Memory, chains: list[Memory], lanes: int) -> None:
    """Store what the chains hold, so that they are computed."""
    for number, chain in enumerate(chains):
        emit.store(words, (number + 1) * lanes, emit.load(chain, 0, lanes), lanes)
