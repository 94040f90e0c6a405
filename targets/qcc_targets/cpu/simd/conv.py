"""Convolutions and dense layers: which template, with which blocking, by the models' estimates or by measurement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Site
from qcc_targets.cpu.simd import conv_amx, conv_neon, conv_vnni
from qcc_targets.cpu.simd.blocking import amx_candidates, amx_cycles
from qcc_targets.cpu.simd.blocking_neon import neon_candidates, neon_cycles
from qcc_targets.cpu.simd.blocking_vnni import vnni_candidates, vnni_cycles
from qcc_targets.cpu.simd.contraction import contraction


@dataclass(frozen=True, slots=True)
class Candidate:
    """A template with a blocking, by name, and the cycles that its model estimates."""

    name: str
    cycles: float
    build: Callable[[], Kernel]


def candidates(site: Site, isa: Isa) -> list[Candidate]:
    """All ways to compute an ``iconv2d`` or ``idense`` with one group, the one of the best estimate first."""
    work = contraction(site, isa) if "avx2" in isa or "dotprod" in isa else None
    if work is None:
        return []
    found = []
    if "amx" in isa:
        for tiled in amx_candidates(work):
            build = partial(conv_amx.build, site, isa, work, tiled)
            found.append(Candidate(f"tiles {tiled}", amx_cycles(work, tiled), build))
    if "dotprod" in isa:
        for laid in neon_candidates(work, isa):
            neon = partial(conv_neon.build, site, isa, work, laid)
            found.append(Candidate(f"neon {laid}", neon_cycles(work, isa, laid), neon))
    elif not work.signed:
        for dotted in vnni_candidates(work, isa):
            made = partial(conv_vnni.build, site, isa, work, dotted)
            found.append(Candidate(f"vectors {dotted}", vnni_cycles(work, isa, dotted), made))
    return sorted(found, key=lambda candidate: candidate.cycles)


def build(site: Site, isa: Isa) -> Kernel | None:
    """The kernel that was measured to be fastest, else that of the best estimate; None where there is none."""
    found = candidates(site, isa)
    wanted = isa.tuning.get(site.spelling) if isa.tuning else None
    return next((c for c in found if c.name == wanted), found[0]).build() if found else None
