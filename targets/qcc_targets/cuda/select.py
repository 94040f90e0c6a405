"""Which template builds the kernel of an operation: the fast ones first, then the generic one."""

from __future__ import annotations

from qcc_targets.cpu.kernel import Site
from qcc_targets.cuda.dot import depthwise, row_product
from qcc_targets.cuda.kernel import CudaKernel, generic
from qcc_targets.cuda.pool import max_pool
from qcc_targets.cuda.tensor import tensor


def select(site: Site, *, halo: bool = False) -> CudaKernel:
    """The kernel for ``site``; one that ``fills_halo`` where ``halo`` is asked for and the template can.

    Raises TargetError when no template builds the operation.
    """
    fast = row_product(site) or tensor(site, halo=halo) or depthwise(site, halo=halo) or max_pool(site)
    return fast or generic(site)
