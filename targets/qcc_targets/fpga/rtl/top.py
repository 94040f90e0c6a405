"""The top module: AXI-Stream in and out, frames marked by tlast, and registers over AXI-Lite."""

from __future__ import annotations

from collections.abc import Sequence

from qcc_targets.fpga.rtl.network import Boundary, Design

LITE = (
    ("input", 6, "awaddr"),
    ("input", 1, "awvalid"),
    ("output", 1, "awready"),
    ("input", 32, "wdata"),
    ("input", 1, "wvalid"),
    ("output", 1, "wready"),
    ("output", 2, "bresp"),
    ("output", 1, "bvalid"),
    ("input", 1, "bready"),
    ("input", 6, "araddr"),
    ("input", 1, "arvalid"),
    ("output", 1, "arready"),
    ("output", 32, "rdata"),
    ("output", 2, "rresp"),
    ("output", 1, "rvalid"),
    ("input", 1, "rready"),
)
"""Direction, width and name of the AXI-Lite signals (``s_axi_…``)."""


def bus_bytes(boundary: Boundary) -> int:
    """Bytes of a word on AXI-Stream: elements side by side, the first lowest, padded to whole bytes."""
    return -(-boundary.width // 8)


def write_top(name: str, design: Design) -> str:
    """The module ``name``."""
    ports = ["input wire aclk", "input wire aresetn"]
    for prefix, boundaries, into in (("s_axis", design.inputs, True), ("m_axis", design.outputs, False)):
        for i, b in enumerate(boundaries):
            there, back = ("input", "output") if into else ("output", "input")
            p = f"{prefix}{i}"
            ports += [f"{there} wire [{8 * bus_bytes(b) - 1}:0] {p}_tdata", f"{there} wire {p}_tvalid"]
            ports += [f"{there} wire {p}_tlast", f"{back} wire {p}_tready"]
    ports += [f"{way} wire {f'[{bits - 1}:0] ' if bits > 1 else ''}s_axi_{n}" for way, bits, n in LITE]
    body = ["wire halt, done;", "reg rst;", "always @(posedge aclk) rst <= !aresetn || halt;"]
    connected = [".clk(aclk)", ".rst(rst)"]
    for i, b in enumerate(design.inputs):
        body += [
            f"wire in{i}_ready, in{i}_end;",
            f"assign s_axis{i}_tready = in{i}_ready && !rst;",
            f"wire in{i}_moved = s_axis{i}_tvalid && s_axis{i}_tready;",
            _frame(f"in{i}", b),
        ]
        valid = f"s_axis{i}_tvalid && !rst"
        connected += [f".in{i}_data(s_axis{i}_tdata[{b.width - 1}:0])", f".in{i}_valid({valid})"]
        connected.append(f".in{i}_ready(in{i}_ready)")
    for i, b in enumerate(design.outputs):
        pad = 8 * bus_bytes(b) - b.width
        body += [
            f"wire [{b.width - 1}:0] out{i}_data;",
            f"wire out{i}_valid, out{i}_end;",
            f"assign m_axis{i}_tvalid = out{i}_valid && !rst;",
            f"assign m_axis{i}_tdata = {f'{{{pad}{chr(39)}b0, out{i}_data}}' if pad else f'out{i}_data'};",
            f"assign m_axis{i}_tlast = out{i}_end;",
            f"wire out{i}_moved = m_axis{i}_tvalid && m_axis{i}_tready;",
            _frame(f"out{i}", b),
        ]
        connected += [f".out{i}_data(out{i}_data)", f".out{i}_valid(out{i}_valid)", f".out{i}_ready(m_axis{i}_tready)"]
    body.append(f"qcc_network network ({', '.join(connected)});")
    # A frame is done when every output has sent its last word; some may be frames ahead of others.
    for i in range(len(design.outputs)):
        body += [
            f"reg [15:0] ahead{i};",
            f"wire closed{i} = ahead{i} != 0 || (out{i}_moved && out{i}_end);",
            f"wire [15:0] still{i} = ahead{i} + (out{i}_moved && out{i}_end) - done;",
            f"always @(posedge aclk) ahead{i} <= rst ? 0 : still{i};",
        ]
    body += [
        f"assign done = {' && '.join(f'closed{i}' for i in range(len(design.outputs)))};",
        f"wire misplaced = {_any(design.inputs, 'in{0}_moved && s_axis{0}_tlast != in{0}_end')};",
        f"wire waiting = {_any(design.outputs, 'm_axis{0}_tvalid && !m_axis{0}_tready')};",
        f"wire starved = {_any(design.inputs, 's_axis{0}_tready && !s_axis{0}_tvalid')};",
    ]
    lite = ", ".join(f".{n}(s_axi_{n})" for _, _, n in LITE)
    counted = (
        ".halt(halt), .begun(in0_moved && in0_end), .begin_word(in0_moved), .done(done), .misplaced(misplaced), "
        ".waiting(waiting), .starved(starved)"
    )
    body.append(f"qcc_registers registers (.clk(aclk), .resetn(aresetn), {lite}, {counted});")
    return "\n".join(
        [f"module {name} (", ",\n".join(f"    {p}" for p in ports), ");", *(f"    {b}" for b in body), "endmodule", ""]
    )


def _frame(port: str, boundary: Boundary) -> str:
    ports = f".clk(aclk), .rst(rst), .moved({port}_moved), .last({port}_end)"
    return f"qcc_frame #(.WORDS({boundary.words})) frame_{port} ({ports});"


def _any(boundaries: Sequence[Boundary], text: str) -> str:
    return " || ".join(f"({text.format(i)})" for i in range(len(boundaries)))
