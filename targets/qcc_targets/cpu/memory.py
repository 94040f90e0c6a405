"""The static memory plan: which storages overlay which, and where in the arena each lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qcc.ir.types import DTYPES
from qcc_targets.cpu.kernel import ALIGN, SLACK, Kernel
from qcc_targets.cpu.lowering import FILL_HALO, Lowered, Space


@dataclass(frozen=True, slots=True)
class Block:
    """``size`` bytes that are in use from step ``first`` to step ``last``, both included."""

    size: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Byte offsets in the arena: of each storage (None: the caller's memory), of each step's scratch.

    ``size`` is the arena's, the slack at both ends included.
    """

    storages: tuple[int | None, ...]
    scratch: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Padding:
    """Bytes to which blocks of memory are ``aligned``, and how many may be read around them: ``slack``."""

    align: int = ALIGN
    slack: int = SLACK

    def aligned(self, size: int) -> int:
        return -(-size // self.align) * self.align


ROOMY: Final = Padding()
"""What vector instructions want."""


def plan(lowered: Lowered, kernels: Sequence[Kernel], padding: Padding = ROOMY) -> MemoryPlan:
    """Offsets at which no two storages that live at one time overlap, except by a kernel's leave."""
    uses = _uses(lowered)
    owner = _overlays(lowered, kernels, uses)
    blocks: dict[int, Block] = {}
    for number, storage in enumerate(lowered.storages):
        if storage.space is not Space.ARENA or not uses[number]:
            continue
        size = storage.size * DTYPES[storage.dtype].itemsize
        key, block = owner[number], Block(size, uses[number][0], uses[number][-1])
        if (known := blocks.get(key)) is not None:
            block = Block(max(size, known.size), min(block.first, known.first), max(block.last, known.last))
        blocks[key] = block
    scratch = [Block(kernel.scratch, step, step) for step, kernel in enumerate(kernels)]
    keys = list(blocks)
    offsets, size = arrange([*(blocks[k] for k in keys), *scratch], padding)
    where = dict(zip(keys, offsets, strict=False))
    storages = tuple(where.get(owner[n]) if s.space is Space.ARENA else None for n, s in enumerate(lowered.storages))
    return MemoryPlan(storages, tuple(offsets[len(keys) :]), size)


def arrange(blocks: Sequence[Block], padding: Padding = ROOMY) -> tuple[list[int], int]:
    """An aligned offset for each block, and the size of the whole: the largest first, each as low as it fits."""
    offsets = [padding.slack] * len(blocks)
    placed: list[int] = []
    for number in sorted(range(len(blocks)), key=lambda n: (-blocks[n].size, n)):
        block = blocks[number]
        if not block.size:
            continue
        spot = padding.slack
        rivals = [p for p in placed if blocks[p].first <= block.last and block.first <= blocks[p].last]
        for rival in sorted(rivals, key=lambda p: offsets[p]):
            if offsets[rival] - spot >= block.size:
                break
            spot = max(spot, padding.aligned(offsets[rival] + blocks[rival].size))
        offsets[number] = spot
        placed.append(number)
    end = max((offsets[p] + blocks[p].size for p in placed), default=padding.slack)
    return offsets, padding.aligned(end) + padding.slack


def _uses(lowered: Lowered) -> list[list[int]]:
    """The steps that touch each storage, in order."""
    uses: list[list[int]] = [[] for _ in lowered.storages]
    for number, step in enumerate(lowered.steps):
        for storage in {*step.inputs, step.output}:
            uses[storage].append(number)
    return uses


def _overlays(lowered: Lowered, kernels: Sequence[Kernel], uses: Sequence[Sequence[int]]) -> list[int]:
    """The storage whose memory each storage takes: its own, or that of an operand that dies as it is born."""
    owner = list(range(len(lowered.storages)))
    for number, (step, kernel) in enumerate(zip(lowered.steps, kernels, strict=True)):
        for slot in kernel.inplace:
            source = step.inputs[slot]
            if _may_overlay(lowered, uses, number, source):
                owner[step.output] = owner[source]
                break
    return owner


def _may_overlay(lowered: Lowered, uses: Sequence[Sequence[int]], number: int, source: int) -> bool:
    step = lowered.steps[number]
    both = (lowered.storages[source], lowered.storages[step.output])
    if source == step.output or any(s.space is not Space.ARENA for s in both):
        return False
    before = [n for n in uses[step.output] if n < number]
    fresh = all(n == number - 1 and lowered.steps[n].site.op.kind == FILL_HALO for n in before)
    return fresh and uses[source][-1] == number and step.inputs.count(source) == 1
