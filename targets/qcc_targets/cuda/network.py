"""A whole network: distinct kernels, constants in one blob, memory planned, launches in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tvm import tirx

from qcc.errors import TargetError
from qcc.ir.graph import Graph
from qcc.ir.types import DTYPES
from qcc.runtime.cuda_program import Address, Launch
from qcc_targets.cpu.lowering import FILL_HALO, Lowered, Space, Step, lower
from qcc_targets.cpu.memory import MemoryPlan, Padding, plan
from qcc_targets.cpu.network import Symbols, joined
from qcc_targets.cuda.kernel import CudaKernel
from qcc_targets.cuda.operands import padded_pixel
from qcc_targets.cuda.select import select

PADDING: Final = Padding(align=256, slack=1024)
"""Blocks of memory begin where the memory's transactions do; tiles of the last rows may reach beyond a tensor."""


_COUNTED: Final = 2
"""Tensor cores read elements of up to two bytes by byte offsets; all other indices count elements."""


@dataclass(frozen=True, slots=True)
class CudaNetwork:
    functions: dict[str, tirx.PrimFunc]
    launches: tuple[Launch, ...]
    constants: bytes
    arena: int


def assemble(graph: Graph, batch: int) -> CudaNetwork:
    """Select kernels, plan memory, name the launches. Raises TargetError."""
    lowered = lower(graph, batch, padded_pixel)
    if large := [s for s in lowered.storages if s.size * min(DTYPES[s.dtype].itemsize, _COUNTED) >= 1 << 31]:
        raise TargetError(f"a tensor of {large[0].size} elements is beyond 32-bit indices: use a smaller batch")
    lowered, kernels = _selected(lowered)
    memory = plan(lowered, [k.kernel for k in kernels], PADDING)
    constants, starts = joined([k.kernel.constants for k in kernels], PADDING)
    symbols = Symbols()
    launches: list[Launch] = []
    for number, (kernel, start) in enumerate(zip(kernels, starts, strict=True)):
        following: CudaKernel | None = kernel
        while following is not None:
            symbol = symbols.name(following.kernel.func)
            launches.append(_launch(lowered, memory, number, following, symbol, start))
            following = following.then
    return CudaNetwork(symbols.functions, tuple(launches), constants, memory.size)


def _selected(lowered: Lowered) -> tuple[Lowered, list[CudaKernel]]:
    """The steps that need a launch of their own, with their kernels: some kernels fill their result's halo."""
    steps: list[Step] = []
    kernels: list[CudaKernel] = []
    filling: Step | None = None
    for step in lowered.steps:
        asked = filling is not None and filling.output == step.output and filling.site.output == step.site.output
        kernel = select(step.site, halo=asked)
        if filling is not None and not kernel.fills_halo:
            steps.append(filling)
            kernels.append(select(filling.site))
        filling = step if step.site.op.kind == FILL_HALO else None
        if filling is None:
            steps.append(step)
            kernels.append(kernel)
    return Lowered(lowered.storages, tuple(steps)), kernels


def _launch(
    lowered: Lowered, memory: MemoryPlan, number: int, kernel: CudaKernel, symbol: str, constants: int
) -> Launch:
    step = lowered.steps[number]
    arguments: Sequence[Address] = [
        *(_address(lowered, memory, storage) for storage in step.inputs),
        Address(space="constants", offset=constants),
        _address(lowered, memory, step.output),
        Address(space="arena", offset=memory.scratch[number]),
    ]
    return Launch(
        kernel=symbol,
        grid=kernel.grid,
        block=kernel.block,
        arguments=tuple(arguments),
        op=step.site.op.kind,
        result=step.site.op.result.name,
        template=kernel.kernel.name,
    )


def _address(lowered: Lowered, memory: MemoryPlan, number: int) -> Address:
    storage, offset = lowered.storages[number], memory.storages[number]
    if storage.space is Space.ARENA:
        return Address(space="arena", offset=offset or 0)
    return Address(space="input" if storage.space is Space.INPUT else "output", index=storage.index)
