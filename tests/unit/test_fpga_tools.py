"""External tools of the FPGA target: found or not, run with limits, what they count."""

import sys
from pathlib import Path

import pytest

from qcc.errors import TargetError
from qcc_targets.fpga.device import load_device
from qcc_targets.fpga.synth import count, route, synthesize
from qcc_targets.fpga.tools import NEXTPNR_ECP5, TOOLS, YOSYS, Limits, Tool, programs, run_tool

PYTHON = Tool("python", "runs", "install it", lambda: (sys.executable, "-c"))

MULTIPLIER = """\
module multiplier(input clk, input signed [7:0] a, b, input [9:0] at, output reg signed [15:0] p);
  reg signed [7:0] x, y;
  reg signed [15:0] m [0:1023];
  always @(posedge clk) begin x <= a; y <= b; m[at] <= x * y; p <= m[at + 10'd1]; end
endmodule
"""


def kept_log(error: BaseException) -> str:
    """The text of the log that an error names, which is then removed."""
    log = Path(str(error).rpartition("log: ")[2])
    text = log.read_text()
    log.unlink()
    return text


def test_the_output_comes_back(tmp_path: Path) -> None:
    code = "import sys, os; sys.stdout.write(os.getcwd() + sys.stdin.read())"
    assert run_tool(PYTHON, [code], tmp_path, stdin=b"!") == f"{tmp_path}!".encode()


def test_a_missing_tool_says_how_to_install_it(tmp_path: Path) -> None:
    tool = Tool("magic", "does all", "pip install magic", lambda: None)
    with pytest.raises(TargetError, match="magic is not installed, which does all: pip install magic"):
        run_tool(tool, [], tmp_path)


def test_a_failure_shows_its_error_and_keeps_the_log(tmp_path: Path) -> None:
    code = "import sys; print('ERROR: it broke'); print('detail', file=sys.stderr); sys.exit(3)"
    with pytest.raises(TargetError, match="python failed: ERROR: it broke; log: ") as caught:
        run_tool(PYTHON, [code], tmp_path)
    assert "detail" in kept_log(caught.value)


def test_a_tool_that_hangs_is_ended_and_its_log_kept(tmp_path: Path) -> None:
    with pytest.raises(
        TargetError, match=r"python (was killed by signal \d+|took too long); its limits are 1 s"
    ) as caught:
        run_tool(PYTHON, ["print('began', flush=True)\nwhile True: pass"], tmp_path, Limits(seconds=1))
    assert "began" in kept_log(caught.value)


def test_a_tool_that_waits_forever_is_ended(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="python took too long") as caught:
        run_tool(PYTHON, ["import time; print('began', flush=True); time.sleep(60)"], tmp_path, Limits(seconds=1))
    assert "began" in kept_log(caught.value)


def test_every_tool_is_listed_for_the_doctor() -> None:
    listed = programs()
    assert [p.name for p in listed] == [t.name for t in TOOLS]
    assert all(p.install and p.purpose for p in listed)


def test_cells_become_resources() -> None:
    usage = count(
        {"LUT6": 3, "LUT2": 1, "RAM32M": 2, "FDRE": 5, "DSP48E2": 2, "RAMB36E2": 1, "RAMB18E2": 1, "MUXF7": 9}
    )
    assert (usage.luts, usage.flip_flops, usage.dsps, usage.memory_blocks) == (12, 5, 2, 3)
    total = usage + count({"FDSE": 1})
    assert total.flip_flops == 6 and total.cells["FDSE"] == 1 and total.cells["LUT6"] == 3


def test_synthesis_counts_and_routing_gives_a_clock(tmp_path: Path) -> None:
    for tool in (YOSYS, NEXTPNR_ECP5):
        if tool.find() is None:
            pytest.skip(f"no {tool.name} here: {tool.install}")
    (source := tmp_path / "multiplier.v").write_text(MULTIPLIER)
    device = load_device("lfe5u-85f")
    usage = synthesize(device, [source], "multiplier", tmp_path)
    assert (usage.dsps, usage.memory_blocks) == (1, 1)
    assert usage.flip_flops >= 16
    routed = route(device, "multiplier", tmp_path)
    assert 20 < routed.clock_mhz < 1000
    assert routed.used["MULT18X18D"] == (1, 156)


def test_a_design_that_does_not_parse_is_one_error(tmp_path: Path) -> None:
    if YOSYS.find() is None:
        pytest.skip(f"no yosys here: {YOSYS.install}")
    (source := tmp_path / "bad.v").write_text("module bad(; endmodule")
    with pytest.raises(TargetError, match=r"yosys failed: .*syntax error") as caught:
        synthesize(load_device("lfe5u-85f"), [source], "bad", tmp_path)
    assert kept_log(caught.value)


def test_parts_without_an_open_router_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no open tool routes for xczu3eg"):
        route(load_device("xczu3eg"), "top", tmp_path)
