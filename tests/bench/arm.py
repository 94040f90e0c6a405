# ruff: noqa: T201 - a measurement prints
"""Instructions that kernels of the cpu target take on AArch64, counted by the emulator, per shape and level.

    python tests/bench/arm.py [--isa neon,dotprod,i8mm] [PATTERN ...]

Shapes are those of ``kernels.py``. Copies into and out of the network's own memory are counted, too.
``generic`` is what the plain templates take, compiled for the richest level. Counts are no times, but there
is no cache here to speak of: on a core that starts two vector instructions a cycle, half of them is a bound.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from aarch64 import Emulated, missing
from kernels import SHAPES, Shape

from qcc_targets.cpu.cost import operations
from qcc_targets.cpu.isa import LEVELS, Isa
from qcc_targets.cpu.lowering import lower

GENERIC: Final = "generic"


def level(name: str) -> Isa:
    """The level ``name``; ``generic`` is the richest without a feature that a template asks about."""
    return replace(LEVELS["i8mm"], features=frozenset(), name="max") if name == GENERIC else LEVELS[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="shapes, or regular expressions for known ones")
    parser.add_argument("--isa", default="generic,neon,dotprod,i8mm")
    chosen = parser.parse_args()
    if (complaint := missing()) is not None:
        raise SystemExit(complaint)
    levels = [level(name) for name in chosen.isa.split(",")]
    shapes = [s for s in SHAPES if any(re.search(p, s) for p in chosen.patterns or [""])]
    print(f"{'shape':30} " + " ".join(f"{isa.name:>12}" for isa in levels) + "   instructions; operations for each")
    for shape in shapes:
        graph = Shape.of(shape).graph()
        work = sum(operations(s.site) for s in lower(graph).steps)
        cells = []
        for isa in levels:
            with tempfile.TemporaryDirectory() as folder:
                cells.append(Emulated(graph, isa, Path(folder)).build().instructions())
        counts = " ".join(f"{count:12}" for count in cells)
        print(f"{shape:30} {counts}   " + " ".join(f"{work / count:6.2f}" for count in cells), flush=True)


if __name__ == "__main__":
    main()
