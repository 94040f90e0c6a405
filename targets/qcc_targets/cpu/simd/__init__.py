"""Fast kernels: templates in vectors, tiles and registers, one per operation and instruction set.

``build`` answers for a site; what it does not cover, the generic templates do. A template cuts its
work by a small analytical model (``blocking``), packs its constants at compile time (``contraction``,
``epilogue``), and emits straight code with few loops (``emit``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Site
from qcc_targets.cpu.simd import conv, depthwise, lookup, rescale

Template = Callable[[Site, Isa], Kernel | None]

_TEMPLATES: Final[Mapping[str, tuple[Template, ...]]] = {
    "iconv2d": (depthwise.build, conv.build),
    "idense": (conv.build,),
    "ilinear": (rescale.build,),
    "ilookup": (lookup.build,),
}
"""The templates of each operation, the fastest first."""


def build(site: Site, isa: Isa) -> Kernel | None:
    """The fastest kernel for ``site`` on ``isa``, or None where no template here covers it."""
    for template in _TEMPLATES.get(site.op.kind, ()):
        if (kernel := template(site, isa)) is not None:
            return kernel
    return None
