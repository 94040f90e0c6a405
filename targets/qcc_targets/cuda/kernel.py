"""What a CUDA kernel template gives: a kernel of the CPU target's contract, whose threads are bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qcc.errors import TargetError
from qcc_targets.cpu.generic.nest import THREADS as OWN_MEMORY
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Site
from qcc_targets.cpu.select import GENERIC
from qcc_targets.cuda.bind import THREADS, bound

Grid = tuple[int, int, int]

ONE_LANE: Final = Isa("cuda", 8, frozenset({OWN_MEMORY}), frozenset(), "")
"""What the generic templates are asked for: scalar code with memory of its own."""


@dataclass(frozen=True, slots=True)
class CudaKernel:
    """A kernel and its launch; the function takes the same pointers as a CPU kernel's does, all in device memory."""

    kernel: Kernel
    grid: Grid
    block: Grid
    fills_halo: bool = False
    """Whether it also writes the border around its result."""
    then: CudaKernel | None = None
    """A kernel that must follow, given the same pointers; constants and scratch are this one's."""


def generic(site: Site) -> CudaKernel:
    """One thread per result. Raises TargetError when no template builds the operation."""
    template = GENERIC.get(site.op.kind)
    if template is None:
        raise TargetError(f"{site.op}: the cuda target has no kernel for '{site.op.kind}'")
    kernel = template(site, ONE_LANE)
    func, blocks = bound(kernel.func)
    made = Kernel(kernel.name, func, kernel.constants, kernel.scratch, kernel.inplace)
    return CudaKernel(made, (blocks, 1, 1), (THREADS, 1, 1))
