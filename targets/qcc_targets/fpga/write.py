"""All files of a network: sources, memories, testbench, and what a vendor's tools need to take it over."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Final, Literal

from qcc_targets.fpga.description import Description, QueueRow, StageRow, Words
from qcc_targets.fpga.folding import Folding, cycles, frame_cycles
from qcc_targets.fpga.rtl.network import Boundary, write_network
from qcc_targets.fpga.rtl.products import Ports, multipliers
from qcc_targets.fpga.rtl.top import write_top
from qcc_targets.fpga.stages import Contraction, Dataflow, Port, Stage
from qcc_targets.fpga.testbench import write_testbench

_DTYPE: Final = {"u8": "uint8", "i8": "int8", "u16": "uint16", "i16": "int16", "i32": "int32", "i64": "int64"}

PARTS: Final = "hardware.sv"
NETWORK: Final = "network.sv"
TOP: Final = "top.sv"
TESTBENCH: Final = "testbench.cpp"
DESCRIPTION: Final = "network.json"


def write_files(
    network: Dataflow,
    foldings: Mapping[str, Folding],
    top: str,
    clock_mhz: float,
    run: Literal["rtl", "hls"] = "rtl",
    ports: Ports | None = None,
) -> dict[str, bytes]:
    """Contents by file name; multipliers of ``ports`` are shared where that is exact. Raises TargetError."""
    design = write_network(network, foldings, ports)
    spec = Description(
        top=top,
        sources=(PARTS, NETWORK, TOP),
        testbench=TESTBENCH,
        run=run,
        cycles=frame_cycles(network, dict(foldings)),
        inputs=tuple(_words(p, b) for p, b in zip(network.inputs, design.inputs, strict=True)),
        outputs=tuple(_words(p, b) for p, b in zip(network.outputs, design.outputs, strict=True)),
        stages=tuple(_row(i, s, foldings[s.name], ports) for i, s in enumerate(network.stages)),
        queues=tuple(QueueRow(name=q.name, bits=q.bits, words=q.words) for q in design.queues),
    )
    texts = {
        PARTS: files("qcc_targets.fpga").joinpath(PARTS).read_text(),
        NETWORK: design.text,
        TOP: write_top(top, design),
        TESTBENCH: write_testbench(design),
        "constraints.xdc": _constraints(clock_mhz),
        "vivado.tcl": _vivado(top, sorted(design.memories)),
        "files.f": "".join(f"{name}\n" for name in (PARTS, NETWORK, TOP)),
        **design.memories,
    }
    return {name: text.encode() for name, text in texts.items()} | {DESCRIPTION: spec.to_bytes()}


def _words(port: Port, boundary: Boundary) -> Words:
    return Words(
        name=port.name,
        shape=port.shape,
        dtype=_DTYPE[port.dtype],  # type: ignore[arg-type]
        bits=boundary.bits,
        signed=port.stream.signed,
        lanes=boundary.lanes,
        order=tuple(port.order.tolist()),
    )


def _row(number: int, stage: Stage, folding: Folding, ports: Ports | None) -> StageRow:
    return StageRow(
        name=stage.name,
        op=stage.op,
        module=f"stage{number}",
        pe=folding.pe,
        simd=folding.simd,
        cycles=cycles(stage, folding),
        multipliers=multipliers(stage, folding, ports) if isinstance(stage, Contraction) else 0,
        accumulator_bits=stage.accumulator.bits if isinstance(stage, Contraction) else None,
    )


def _constraints(clock_mhz: float) -> str:
    return (
        "# The clock that the foldings were chosen for. Pins are for the surrounding block design to place.\n"
        f"create_clock -name aclk -period {1000 / clock_mhz:.3f} [get_ports aclk]\n"
    )


def _vivado(top: str, memories: list[str]) -> str:
    listed = " ".join(memories)
    return (
        "# vivado -mode batch -source vivado.tcl -tclargs PART\n"
        "set part [lindex $argv 0]\n"
        f"read_verilog -sv {{{PARTS} {NETWORK} {TOP}}}\n"
        + (f"read_mem {{{listed}}}\n" if memories else "")
        + "read_xdc constraints.xdc\n"
        f"synth_design -top {top} -part $part -mode out_of_context\n"
        "report_utilization -file utilization.txt\n"
        "opt_design\nplace_design\nroute_design\n"
        "report_timing_summary -file timing.txt\n"
    )
