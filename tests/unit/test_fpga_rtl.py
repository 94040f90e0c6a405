"""SystemVerilog of streaming networks: the reference's bits in simulation, whatever source and sink do, on time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fpga_cases import CASES, Case, Net, target_cycles, together

from qcc.errors import TargetError
from qcc.ir.bounds import Interval
from qcc.passmgr.context import PassContext
from qcc.trial import try_target
from qcc.verify.interp import evaluate
from qcc_targets.fpga import simulation
from qcc_targets.fpga.buffers import fork_pixels, last_reads
from qcc_targets.fpga.dataflow import streaming
from qcc_targets.fpga.description import Description
from qcc_targets.fpga.folding import Folding, frame_cycles, legal
from qcc_targets.fpga.rtl.circuit import Circuit, Signal, literal
from qcc_targets.fpga.rtl.products import Ports, multipliers, packing
from qcc_targets.fpga.rtl.window import plan_window
from qcc_targets.fpga.simulation import Pauses, Simulation
from qcc_targets.fpga.stages import Contraction, Dataflow
from qcc_targets.fpga.target import FpgaTarget
from qcc_targets.fpga.tools import VERILATOR, Limits
from qcc_targets.fpga.words import pack_words, unpack_words
from qcc_targets.fpga.write import write_files


def case(name: str) -> Case:
    return next(c for c in CASES if c.name == name)


def middling(network: Dataflow) -> dict[str, Folding]:
    """Foldings with several lanes on both sides of many stages, of sizes that do not divide each other."""
    return {s.name: legal(s)[len(legal(s)) * 2 // 3] for s in network.stages}


@pytest.fixture
def needs_verilator() -> None:
    if VERILATOR.find() is None:
        pytest.skip(f"no verilator here: {VERILATOR.install}")


@pytest.mark.usefixtures("needs_verilator")
def test_every_kind_of_layer_gives_the_reference() -> None:
    """All cases side by side, each between ports of its own, so that one simulation is built for all."""
    graph, inputs, names = together(CASES, 4)
    expected = evaluate(graph, inputs)
    network = streaming(graph)
    simulated = Simulation(write_files(network, middling(network), "cases", 100, ports=Ports(27, 18)))
    for pauses in (Pauses(), Pauses(50, 60, seed=2), Pauses(90, 30, seed=3)):
        got = simulated.run(inputs, pauses).outputs
        differing = {names[k]: int(np.count_nonzero(got[k] != expected[k])) for k in expected}
        assert not any(differing.values()), (pauses, differing)


@pytest.mark.usefixtures("needs_verilator")
def test_cycles_are_those_predicted() -> None:
    """Fast foldings, so that what goes on between layers would show."""
    graph, inputs = case("residual").build(8)
    expected = evaluate(graph, inputs)
    network = streaming(graph)
    foldings = target_cycles(network, 300)
    simulated = Simulation(write_files(network, foldings, "net", 100))
    run = simulated.run(inputs)
    assert all(np.array_equal(run.outputs[k], expected[k]) for k in expected)
    assert run.interval == pytest.approx(frame_cycles(network, foldings), rel=0.02)
    assert run.queues and all(held <= words for held, words in run.queues.values())


@pytest.mark.usefixtures("needs_verilator")
def test_sums_wait_for_a_late_short_cut() -> None:
    """What waits at the output of the sum, too, leaves it once only."""
    graph, inputs = case("late short cut").build(4)
    expected = evaluate(graph, inputs)
    network = streaming(graph)
    foldings = {s.name: legal(s)[0 if i == 0 else -1] for i, s in enumerate(network.stages)}
    simulated = Simulation(write_files(network, foldings, "net", 100))
    for pauses in (Pauses(), Pauses(100, 30, seed=2)):
        got = simulated.run(inputs, pauses).outputs
        assert all(np.array_equal(got[k], expected[k]) for k in expected), pauses


@pytest.mark.usefixtures("needs_verilator")
def test_sums_that_end_together_wait_for_no_short_cut() -> None:
    """One word comes every 8 cycles, and 8 are added every 72."""
    graph, inputs = case("late short cut").build(5)
    network = streaming(graph)
    short, main, total = (s.name for s in network.stages)
    foldings = {short: Folding(1, 1), main: Folding(8, 8), total: Folding(8, 1)}
    run = Simulation(write_files(network, foldings, "net", 100)).run(inputs)
    assert run.interval == pytest.approx(frame_cycles(network, foldings), rel=0.02)


@pytest.mark.usefixtures("needs_verilator")
def test_a_network_that_hangs_is_reported_and_its_log_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, inputs = case("pointwise").build(1)
    network = streaming(graph)
    files = write_files(network, target_cycles(network, 100), "net", 100)
    deaf = files["hardware.sv"].replace(b"assign x_ready = held < ", b"assign x_ready = 1'b0 && held < ")
    assert deaf != files["hardware.sv"]
    with pytest.raises(TargetError, match=r"nothing has moved for too long: the network hangs; log: (\S+)") as caught:
        Simulation({**files, "hardware.sv": deaf}).run(inputs)
    log = Path(str(caught.value).rpartition("log: ")[2])
    assert "words are out" in log.read_text()
    log.unlink()
    monkeypatch.setattr(simulation, "BUILD", Limits(seconds=0))
    with pytest.raises(TargetError, match=r"verilator (was killed|took too long)"):
        Simulation(files)


@pytest.mark.parametrize(
    ("codes", "weights", "count"),
    [
        (Interval(0, 255), Interval(-128, 127), 2),
        (Interval(-255, 255), Interval(-128, 127), 2),
        (Interval(0, 15), Interval(-8, 7), 4),
        (Interval(0, 255), Interval(-8, 7), 3),
        (Interval(0, 65535), Interval(-128, 127), 1),
    ],
)
def test_products_share_multipliers(codes: Interval, weights: Interval, count: int) -> None:
    """As the hardware takes them apart, for all corners of the factors and some others."""
    plan = packing(codes, weights, Ports(27, 18))
    assert plan.count == count
    rng = np.random.default_rng(0)
    for x in (codes.low, codes.high, *rng.integers(codes.low, codes.high + 1, 20).tolist()):
        for _ in range(20):
            ws = rng.choice(
                [weights.low, weights.high, int(rng.integers(weights.low, weights.high + 1))], count
            ).tolist()
            joint = sum(w << (plan.stride * i) for i, w in enumerate(ws))
            assert -(1 << 26) <= joint < 1 << 26
            total, found = x * joint, []
            for following in ws[1:]:
                low = total & ((1 << plan.stride) - 1)
                if plan.stride < plan.bits:
                    low |= ((total >> plan.stride) ^ (x & following)) % 2 << plan.stride
                low -= low >> (plan.bits - 1) << plan.bits
                found.append(low)
                total = total - low >> plan.stride
            assert [*found, total] == [x * w for w in ws]


def test_powers_of_two_take_no_multiplier() -> None:
    network = streaming(case("powers of two").build(1)[0])
    (stage,) = network.stages
    assert isinstance(stage, Contraction)
    assert multipliers(stage, Folding(4, 4), None) == 0
    text = write_files(network, {stage.name: Folding(4, 4)}, "net", 100)["network.sv"].decode()
    products = [line for line in text.splitlines() if " * " in line and "assign" in line]
    # What is left is the requantization.
    assert len(products) == 1


def test_without_verilator_networks_are_written_but_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, _ = case("conv").build(1)
    monkeypatch.setenv("PATH", str(tmp_path))
    written = FpgaTarget().build(graph, PassContext(), tmp_path)
    assert {"network.sv", "top.sv", "files.f", "constraints.xdc", "vivado.tcl"} <= {p.name for p in written}
    with pytest.raises(TargetError, match="verilator is not installed"):
        Simulation({p.name: p.read_bytes() for p in written})


def test_two_builds_give_equal_bytes() -> None:
    graph, _ = case("projected").build(1)
    network = streaming(graph)
    one, two = (write_files(streaming(graph), target_cycles(network, 500), "net", 100) for _ in range(2))
    assert one == two


def test_memories_end_with_a_newline() -> None:
    graph, _ = case("chain").build(1)
    network = streaming(graph)
    files = write_files(network, target_cycles(network, 500), "net", 100)
    contents = [data for name, data in files.items() if name.endswith(".mem")]
    assert contents and all(data.endswith(b"\n") for data in contents)


def windows() -> Iterator[Contraction]:
    for c in CASES:
        for stage in streaming(c.build(1)[0]).stages:
            if isinstance(stage, Contraction):
                yield stage


def test_line_buffers_hold_every_window() -> None:
    """Against a walk over all windows: nothing is given up that a later window reads."""
    for stage in windows():
        plan, x, w = plan_window(stage, stage.x.channels), stage.x, stage.window
        reads = []
        for i in range(stage.output.height):
            for j in range(stage.output.width):
                rows = [i * w.strides[0] - w.pads[0] + k * w.dilations[0] for k in range(w.kernel[0])]
                columns = [j * w.strides[1] - w.pads[1] + k * w.dilations[1] for k in range(w.kernel[1])]
                inside = [r * x.width + c for r in rows for c in columns if 0 <= r < x.height and 0 <= c < x.width]
                reads.append(inside)
        oldest = x.pixels
        for inside in reversed(reads):
            oldest = min([oldest, *inside])
            assert not inside or max(inside) - oldest < 1 << plan.address


def test_branches_of_a_fork_wait_for_each_other() -> None:
    network = streaming(case("residual").build(1)[0])
    fork = network.stages[0].output
    depths = fork_pixels(network, fork.name)
    short, long = depths[2, 1], depths[1, 0]
    # Two windows of 3x3 look two rows and two pixels ahead.
    assert 2 * fork.width + 2 < short < 2 * fork.width + 8
    assert long < short


def test_last_reads_of_a_window_follow_its_strides() -> None:
    network = streaming(case("strided").build(1)[0])
    reads = last_reads(network.stages[0], 0)
    assert reads[0] == 1 * 8 + 1
    assert np.all(np.diff(reads) >= 0)


def test_arithmetic_is_as_wide_as_what_it_can_be() -> None:
    c = Circuit()
    a, b = Signal("a", Interval(0, 255), 0), Signal("b", Interval(-128, 127), 0)
    product = c.multiply(a, b)
    assert (product.codes, product.bits, product.time) == (Interval(-32640, 32385), 16, 1)
    late = c.add(product, a)
    assert late.time == 1 and "n" in late.text
    assert c.multiply(a, literal(1)) is a
    assert c.maximum(a, literal(7)).codes == Interval(7, 255)


@pytest.mark.parametrize(("bits", "lanes", "signed"), [(8, 1, False), (3, 5, True), (16, 2, False), (32, 1, True)])
def test_words_hold_their_elements(bits: int, lanes: int, signed: bool) -> None:
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    codes = np.random.default_rng(1).integers(low, high, (3, 4 * lanes))
    data = pack_words(codes, bits, lanes)
    assert pack_words(np.asfortranarray(codes), bits, lanes) == data
    assert len(data) == 3 * 4 * -(-bits * lanes // 8)
    assert np.array_equal(unpack_words(data, bits, lanes, signed).reshape(codes.shape), codes)


def test_stages_are_described(tmp_path: Path) -> None:
    graph, _ = case("residual").build(1)
    FpgaTarget(cycles=500).build(graph, PassContext(), tmp_path)
    spec = Description.from_bytes((tmp_path / "network.json").read_bytes())
    assert spec.cycles <= 500
    assert [s.op for s in spec.stages] == ["iconv2d"] * 3
    assert all(s.accumulator_bits is not None and s.accumulator_bits < 32 for s in spec.stages)


def test_windows_that_read_only_padding_are_refused() -> None:
    net = Net()
    x = net.conv(net.x(2, 1, 4), 3, (1, 1), strides=(2, 1), pads=(1, 0, 0, 0))
    network = streaming(net.builder.graph([x]))
    with pytest.raises(TargetError, match="iconv2d %y: its windows read nothing but padding"):
        write_files(network, target_cycles(network, 100), "net", 100)


@pytest.mark.usefixtures("needs_verilator")
def test_the_doctors_layer_runs() -> None:
    """Its last products that share a multiplier are narrower than their fields."""
    try_target(FpgaTarget())
