"""What a step costs at least: the operations that it must do, the bytes that it must move."""

from __future__ import annotations

from math import prod

from qcc.ir.types import DTYPES
from qcc_targets.cpu.kernel import Kernel, Site


def operations(site: Site) -> int:
    """Multiplications and additions of a contraction (two per product), additions of a pooling or reduction."""
    o = site.op
    results = site.output.size
    if o.kind in ("iconv2d", "idense"):
        return 2 * results * prod(site.array(1).shape[1:])
    if o.kind == "imatmul":
        return 2 * results * o.operands[0].type.shape[-1]
    if o.kind == "isum_pool2d":
        return results * prod(o.ints_attr("kernel"))
    if o.kind == "ireduce_sum":
        return site.view(0).size
    return 0


def traffic(site: Site, kernel: Kernel) -> int:
    """Bytes of all operands, the result and the packed constants, each counted once."""
    border = site.op.kind == "fill_halo"
    tensors = [*site.inputs, *([] if border else [site.output])]
    return sum(v.size * DTYPES[v.dtype].itemsize for v in tensors) + len(kernel.constants)
