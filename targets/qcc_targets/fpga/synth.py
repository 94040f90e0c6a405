"""What a design takes of a device, and how fast it runs there, by open tools: yosys, and nextpnr for Lattice parts.

These are counts after technology mapping and, for the clock, after routing. Vendor tools often need fewer LUTs.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qcc.errors import TargetError
from qcc_targets.fpga.device import Device
from qcc_targets.fpga.tools import NEXTPNR_ECP5, NEXTPNR_ICE40, YOSYS, Limits, run_tool

_SYNTHESIS: Final = {
    "xcup": "synth_xilinx -family xcup -noiopad -noclkbuf -flatten",
    "xcu": "synth_xilinx -family xcu -noiopad -noclkbuf -flatten",
    "xc7": "synth_xilinx -family xc7 -noiopad -noclkbuf -flatten",
    "ecp5": "synth_ecp5",
    "ice40": "synth_ice40",
}

_WEIGHTS: Final[tuple[tuple[str, str, int], ...]] = (
    ("luts", r"LUT[1-6](_2)?|INV|SRL16E|SRLC32E|LUT4|SB_LUT4", 1),
    ("luts", r"CCU2C|RAM(32|64)X1[SD](_1)?", 2),
    ("luts", r"RAM(32|64)M|RAM128X1D|TRELLIS_DPR16X4", 4),
    ("luts", r"RAM32M16|RAM64M8|RAM256X1D", 8),
    ("flip_flops", r"FD[RSCP]E(_1)?|TRELLIS_FF|SB_DFF\w*", 1),
    ("dsps", r"DSP48E[12]|MULT18X18D", 1),
    ("memory_blocks", r"RAMB18E[12]|DP16KD|SB_RAM40_4K\w*", 1),
    ("memory_blocks", r"RAMB36E[12]", 2),
)
"""Which cells take how much of which resource."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a design takes; memory in blocks of the device's first kind (of 18 kbit, on AMD's parts)."""

    luts: float = 0
    flip_flops: float = 0
    dsps: float = 0
    memory_blocks: float = 0
    cells: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Usage) -> Usage:
        cells = {k: self.cells.get(k, 0) + other.cells.get(k, 0) for k in sorted({*self.cells, *other.cells})}
        return Usage(
            self.luts + other.luts,
            self.flip_flops + other.flip_flops,
            self.dsps + other.dsps,
            self.memory_blocks + other.memory_blocks,
            cells,
        )


def count(cells: Mapping[str, int]) -> Usage:
    """The resources of mapped cells, by type."""
    sums = dict.fromkeys(("luts", "flip_flops", "dsps", "memory_blocks"), 0)
    for kind, number in cells.items():
        for resource, pattern, weight in _WEIGHTS:
            if re.fullmatch(pattern, kind):
                sums[resource] += weight * number
                break
    return Usage(**sums, cells=dict(cells))


_LONG: Final = Limits(seconds=1800)
_ROUTER: Final = Limits(seconds=1800, memory=1 << 40)
"""WebAssembly reserves address space that it never uses."""


def synthesize(
    device: Device,
    sources: Sequence[Path],
    top: str,
    folder: Path,
    limits: Limits = _LONG,
    *,
    without: Sequence[str] = (),
) -> Usage:
    """What the module ``top`` of SystemVerilog ``sources`` takes on ``device``; the netlist is ``folder/<top>.json``.

    Modules ``without`` which it is counted are left empty. Memory files that the sources name are looked for in
    ``folder``. Raises TargetError.
    """
    script = folder / f"{top}.ys"
    empty = f"blackbox {' '.join(without)}\n" if without else ""
    script.write_text(
        f"read_verilog -sv {' '.join(shlex.quote(str(s.resolve())) for s in sources)}\n"
        # Vendors call small memories "distributed"; yosys, which has no such memories without a write port, "logic".
        'setattr -set rom_style "logic" a:rom_style=distributed\n'
        f"{empty}{_SYNTHESIS[device.synthesis]} -top {top}\n"
        f"write_json {top}.json\n"
        f"tee -q -o {top}.stat stat -json\n"
    )
    run_tool(YOSYS, [str(script.resolve())], folder, limits)
    return count(_cells(json.loads((folder / f"{top}.stat").read_text())))


def _cells(stat: Mapping[str, Any]) -> dict[str, int]:
    found: dict[str, int] = stat["design"]["num_cells_by_type"]
    return {name.lstrip("\\"): number for name, number in sorted(found.items())}


@dataclass(frozen=True, slots=True)
class Routed:
    """The clock that a routed design reaches, in MHz, and what it takes of the part's cells, as (used, all) by kind."""

    clock_mhz: float
    used: Mapping[str, tuple[int, int]]


def route(device: Device, top: str, folder: Path, limits: Limits = _ROUTER, *, seed: int = 1) -> Routed:
    """Place and route the netlist ``folder/<top>.json`` that ``synthesize`` left for ``device``.

    Raises TargetError, also for parts without an open router.
    """
    if device.synthesis == "ecp5":
        tool, part = NEXTPNR_ECP5, ["--85k", "--package", "CABGA756", "--speed", "6", "--lpf-allow-unconstrained"]
    elif device.synthesis == "ice40":
        tool, part = NEXTPNR_ICE40, ["--hx8k", "--package", "ct256", "--pcf-allow-unconstrained"]
    else:
        raise TargetError(f"no open tool routes for {device.name}; use the vendor's")
    wanted = ["--freq", f"{device.clock_mhz:g}", "--timing-allow-fail", "--seed", str(seed)]
    run_tool(tool, [*part, *wanted, "--json", f"{top}.json", "--report", f"{top}.report"], folder, limits)
    report = json.loads((folder / f"{top}.report").read_text())
    clocks = [float(each["achieved"]) for each in report["fmax"].values()]
    if not clocks:
        raise TargetError(f"nextpnr reports no clock of {top}")
    cells = {name: (int(each["used"]), int(each["available"])) for name, each in report["utilization"].items()}
    return Routed(min(clocks), {name: share for name, share in cells.items() if share[0]})
