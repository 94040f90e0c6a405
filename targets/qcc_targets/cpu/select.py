"""Which template builds the kernel of an operation: the fast ones first, then the generic one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcc.errors import TargetError
from qcc_targets.cpu.generic import conv, elementwise, pool, products, reduce, softmax
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Site
from qcc_targets.cpu.simd import build as build_fast

GENERIC: Final[Mapping[str, Callable[[Site, Isa], Kernel]]] = {
    "copy": elementwise.copy,
    "fill_halo": elementwise.fill_halo,
    "iconv2d": conv.conv2d,
    "idense": conv.dense,
    "imatmul": products.matmul,
    "ilinear": elementwise.linear,
    "imul": elementwise.multiply,
    "ilookup": elementwise.lookup,
    "isum_pool2d": pool.sum_pool2d,
    "ireduce_sum": reduce.reduce_sum,
    "iresize_linear": pool.resize_linear,
    "isoftmax": softmax.softmax,
    "max_pool2d": pool.max_pool2d,
    "reduce_max": reduce.reduce_max,
    "argmax": reduce.argmax,
    "gather": products.gather,
}
"""The generic template of every operation, the planner's own copies and fills included."""


def select(site: Site, isa: Isa) -> Kernel:
    """The kernel for ``site`` on ``isa``. Raises TargetError when no template builds the operation."""
    template = GENERIC.get(site.op.kind)
    if template is None:
        raise TargetError(f"{site.op}: the cpu target has no kernel for '{site.op.kind}'")
    return build_fast(site, isa) or template(site, isa)
