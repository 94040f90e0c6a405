"""Foldings for a device, and the estimates that they are chosen by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fpga_cases import CASES

from qcc.errors import BudgetError, ConfigError
from qcc.passmgr.context import PassContext
from qcc.passmgr.plugins import make_target
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc_targets.fpga.dataflow import streaming
from qcc_targets.fpga.description import Description
from qcc_targets.fpga.device import Device, load_device
from qcc_targets.fpga.folding import Folding, frame_cycles, legal
from qcc_targets.fpga.parts import JOINED, count_parts
from qcc_targets.fpga.resources import estimate
from qcc_targets.fpga.rtl.products import Ports, powers_of_two
from qcc_targets.fpga.search import find_foldings
from qcc_targets.fpga.stages import Dataflow
from qcc_targets.fpga.target import FpgaTarget
from qcc_targets.fpga.tools import CXX, YOSYS
from qcc_targets.fpga.write import write_files


def network(name: str) -> Dataflow:
    graph, _ = next(c for c in CASES if c.name == name).build(1)
    return streaming(graph)


def tiny(luts: int) -> Device:
    """The smallest part that ships, with ``luts`` LUTs."""
    return load_device("ice40hx8k").model_copy(update={"luts": luts})


@pytest.mark.parametrize("case", [c.name for c in CASES])
def test_a_large_part_holds_every_network(case: str) -> None:
    found = find_foldings(network(case), load_device("xcku5p"))
    assert found.allocation.cycles == frame_cycles(network(case), found.foldings)
    slowest = {s.name: legal(s)[0] for s in network(case).stages}
    assert found.allocation.cycles <= frame_cycles(network(case), slowest)


def test_a_wanted_rate_is_reached_with_less() -> None:
    net, device = network("residual"), load_device("xczu3eg")
    best = find_foldings(net, device)
    wanted = 3 * best.allocation.cycles
    some = find_foldings(net, device, wanted)
    assert some.allocation.cycles <= wanted
    assert some.allocation.usage["luts"] < best.allocation.usage["luts"]
    assert find_foldings(net, device, wanted) == some
    with pytest.raises(BudgetError, match="the fastest takes"):
        find_foldings(net, device, 3)


def test_a_part_that_is_too_small_names_one_that_is_not() -> None:
    with pytest.raises(
        BudgetError, match=r"ice40hx8k: the device is too small: .* luts of 70, .*smallest shipped .* is "
    ):
        find_foldings(network("conv"), tiny(100))


@pytest.mark.parametrize("options", [{}, {"fps": 100_000.0}, {"cycles": 500, "clock_mhz": 90.0}])
def test_the_target_takes_a_part_and_a_rate(options: dict[str, Any], tmp_path: Path) -> None:
    graph, _ = next(c for c in CASES if c.name == "residual").build(1)
    FpgaTarget(part="xczu3eg", **options).build(graph, PassContext(), tmp_path)
    spec = Description.from_bytes((tmp_path / "network.json").read_bytes())
    assert spec.cycles <= {0: 300, 1: 2500, 2: 500}[len(options)]
    assert f"-period {1000 / options.get('clock_mhz', 250):.3f}" in (tmp_path / "constraints.xdc").read_text()
    assert (tmp_path / "hls" / "network.cpp").is_file()


def test_two_rates_contradict() -> None:
    with pytest.raises(ConfigError, match="fps and cycles both say"):
        make_target("fpga", {"fps": 1, "cycles": 1})


def test_an_artifact_runs_as_cpp() -> None:
    if CXX.find() is None:
        pytest.skip(f"no g++ here: {CXX.install}")
    graph, inputs = next(c for c in CASES if c.name == "residual").build(3)
    with trial_session(graph, FpgaTarget(run="hls", cycles=2000)) as session:
        got = session.run(dict(inputs), raw=True)
    expected = evaluate(graph, inputs)
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


def test_multiplication_by_powers_of_two_is_free() -> None:
    assert powers_of_two(np.array([0, 1, -2, 64, -128]))
    assert not powers_of_two(np.array([0, 3]))


def test_estimates_are_near_what_synthesis_counts(tmp_path: Path) -> None:
    if YOSYS.find() is None:
        pytest.skip(f"no yosys here: {YOSYS.install}")
    net, device = network("conv"), load_device("xczu3eg")
    (stage,) = net.stages
    folding = Folding(pe=4, simd=2)
    files = write_files(net, {stage.name: folding}, "top", 200, ports=Ports.of(device))
    counted = dict(count_parts(device, files, "top", tmp_path))
    assert list(counted) == ["stage0", JOINED]
    usage, guess = counted["stage0"], estimate(stage, folding, device)
    assert usage.dsps == guess["dsps"]
    assert usage.memory_blocks == guess["memory_blocks"]
    assert usage.luts == pytest.approx(guess["luts"], rel=0.5)
    assert usage.flip_flops == pytest.approx(guess["flip_flops"], rel=0.5)
    assert counted[JOINED].dsps == 0
    # A second count reads what the first has kept.
    assert dict(count_parts(device, files, "top", tmp_path)) == counted
