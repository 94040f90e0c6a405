"""Convolutions and dense layers: which template, with which blocking, by the models' estimates."""

from __future__ import annotations

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Site
from qcc_targets.cpu.simd import conv_amx, conv_vnni
from qcc_targets.cpu.simd.blocking import amx_blocking, amx_cycles
from qcc_targets.cpu.simd.blocking_vnni import vnni_blocking, vnni_cycles
from qcc_targets.cpu.simd.contraction import contraction


def build(site: Site, isa: Isa) -> Kernel | None:
    """The kernel of an ``iconv2d`` or ``idense`` with one group, or None where neither template covers it."""
    work = contraction(site, isa) if "avx2" in isa else None
    if work is None:
        return None
    if "amx" not in isa:
        return None if work.signed else conv_vnni.build(site, isa, work, vnni_blocking(work, isa))
    tiled = amx_blocking(work)
    if not work.signed:
        blocking = vnni_blocking(work, isa)
        if vnni_cycles(work, isa, blocking) < amx_cycles(work, tiled):
            return conv_vnni.build(site, isa, work, blocking)
    return conv_amx.build(site, isa, work, tiled)
