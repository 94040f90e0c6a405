"""What the kernels of contractions begin and end with: their tensors in memory, and the results of a block."""

from __future__ import annotations

from typing import Protocol

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Pointers, Site
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.contraction import Contraction
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.flat import FlatBlock, Place
from qcc_targets.cpu.simd.positions import Tiles


class FlatBlocking(Protocol):
    """A blocking by tiles of positions and ``channels`` output channels."""

    @property
    def tiles(self) -> Tiles: ...

    @property
    def channels(self) -> int: ...


class FlatOperands(Protocol):
    """The buffers that ``finish_block`` reads and writes; ``tensors`` as ``open_tensors`` gives them."""

    @property
    def tensors(self) -> tuple[Memory, ...]: ...

    @property
    def constants(self) -> Memory: ...

    @property
    def begins(self) -> Memory: ...


def open_tensors(site: Site, isa: Isa, work: Contraction, pointers: Pointers, scratch: int = 0) -> tuple[Memory, ...]:
    """Input, output and, where there is one, residual.

    An input of 16 bits is split first: its planes of bytes lie in scratch memory, from byte ``scratch`` on.
    """
    views = (site.view(0), site.output, *([site.view(4)] if work.residual else []))
    addresses = (pointers.inputs[0], pointers.output, *pointers.inputs[1:])
    x, *others = (emit.memory(p, v.tvm_dtype, v.alignment) for p, v in zip(addresses, views, strict=True))
    if work.split is not None:
        planes = emit.memory(pointers.scratch, "uint8", offset=scratch)
        work.split.emit(isa, x, planes)
        x = planes
    return (x, *others)


def finish_block(
    work: Contraction,
    b: FlatBlocking,
    block: FlatBlock,
    operands: FlatOperands,
    acc: list[Expr],
    tile: Expr,
    column: Expr,
) -> None:
    """Join the planes of ``acc`` where there are two, requantize, and store the results of one block."""
    channel = emit.least(column * b.channels, max(work.outputs - b.channels, 0))
    constants = block.load_constants(operands.constants, column)

    def place(tensor: int) -> Place:
        base = emit.bind(b.tiles.base(tensor, tile) + work.starts[tensor] + channel)
        return lambda position: (0, base, b.tiles.offset(tensor, position))

    target = (operands.tensors[1], place(1))
    residual = (operands.tensors[2], place(2)) if work.residual else None
    if work.split is not None:
        begins, half = block.load_begins(operands.begins, column), len(acc) // 2
        acc = [block.epilogue.joined((acc[v], acc[v + half]), begins[v % block.period]) for v in range(half)]
    for group in range(block.groups):
        block.group(group, lambda v: block.epilogue.halves(acc[v]), constants, target, residual)
