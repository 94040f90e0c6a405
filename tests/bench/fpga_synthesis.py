# ruff: noqa: T201 - a measurement prints
"""What networks take of an UltraScale+ part, and the clock that they reach on an ECP5; one row per model and weights.

    python tests/bench/fpga_synthesis.py [--part xczu3eg] [--weights int8 mixed int4 powers] [--cycles C]
                                         [--kept FOLDER] [--route | --route-only] [--largest N] [--layers-only]
                                         [MODEL ...]

LUTs, flip-flops, DSP slices and blocks of 18 kbit are counted by yosys, stage by stage, and summed with what joins the
stages; below stands what the folding search estimated of the stages. Frames a second are at the clock that the part's
file aims at, which no open tool can confirm. ``--route`` also places and routes each network for an ECP5-85k, and its N
largest stages alone (``--layers-only``: these only, as folded for the part): clocks and frames a second in those rows
are the router's. Counts are kept in a folder, so that an interrupted run goes on. Needs the extra ``fpga``; ``fpga.py``
simulates the same networks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fpga import CYCLES, PASSES, load

from qcc.errors import QccError
from qcc_targets.fpga.dataflow import streaming
from qcc_targets.fpga.description import Description
from qcc_targets.fpga.device import RESOURCES, Device, load_device
from qcc_targets.fpga.parts import count_parts
from qcc_targets.fpga.resources import estimate
from qcc_targets.fpga.rtl.products import Ports
from qcc_targets.fpga.search import find_foldings
from qcc_targets.fpga.stages import Dataflow
from qcc_targets.fpga.synth import Usage, route, synthesize
from qcc_targets.fpga.write import write_files

HEAD = (
    f"{'model':22} {'weights':7} {'part':10} {'cycles':>7} {'LUT':>6} {'FF':>6} {'DSP':>4} {'RAM18':>5} "
    f"{'MHz':>6} {'frames/s':>9}"
)
ROUTER = "lfe5u-85f"


def written(
    network: Dataflow, device: Device, cycles: int, folded: Device | None = None
) -> tuple[dict[str, bytes], list[dict[str, float]]]:
    """The files of ``network`` with the foldings that the search finds, and what it estimated of each stage.

    ``folded`` is the device that it is folded for, where that is another.
    """
    foldings = find_foldings(network, folded or device, cycles).foldings
    files = write_files(network, foldings, "network_top", device.clock_mhz, ports=Ports.of(device))
    return files, [estimate(s, foldings[s.name], device) for s in network.stages]


def counted(network: Dataflow, device: Device, cycles: int, kept: Path) -> tuple[Usage, Usage, Usage, int]:
    """The whole network, its stages, what was estimated of these, and the cycles between frames."""
    files, estimates = written(network, device, cycles)
    spec = Description.from_bytes(files["network.json"])
    parts = []
    for name, usage in count_parts(device, files, spec.top, kept):
        parts.append(usage)
        print(f"  {name}: {usage.luts:g} LUT, {usage.flip_flops:g} FF, {usage.dsps:g} DSP", file=sys.stderr, flush=True)
    stages = sum(parts[:-1], Usage())
    luts, flip_flops, dsps, blocks = (sum(e[name] for e in estimates) for name in RESOURCES)
    return stages + parts[-1], stages, Usage(luts, flip_flops, dsps, blocks), spec.cycles


def row(model: str, weights: str, part: str, cycles: int, usage: Usage, clock_mhz: float | None) -> str:
    rate = f"{clock_mhz:6.1f} {clock_mhz * 1e6 / cycles:9.0f}" if clock_mhz else ""
    return (
        f"{model:22} {weights:7} {part:10} {cycles:7} {usage.luts:6.0f} {usage.flip_flops:6.0f} {usage.dsps:4.0f} "
        f"{usage.memory_blocks:5.0f} {rate}"
    )


def routed(
    network: Dataflow, cycles: int, largest: int, folder: Path, larger: Device | None
) -> list[tuple[str, int, Usage, float]]:
    """What is routed, its cycles for a frame, what it takes, and its clock: the network, and its largest stages.

    These alone, where the network is folded for a ``larger`` device.
    """
    device = load_device(ROUTER)
    files, _ = written(network, device, cycles, larger)
    spec = Description.from_bytes(files["network.json"])
    stages = sorted(spec.stages, key=lambda s: -s.multipliers)[:largest]
    found = []
    chosen = [("", spec.top, spec.cycles)] if larger is None else []
    for what, top, taken in [*chosen, *((s.name, s.module, s.cycles) for s in stages)]:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            place = Path(scratch)
            for name, data in files.items():
                if name.endswith((".sv", ".mem")):
                    (place / name).write_bytes(data)
            try:
                usage = synthesize(device, [place / name for name in spec.sources], top, place)
                found.append((what, taken, usage, route(device, top, place).clock_mhz))
            except QccError as e:
                print(f"  {what or 'the network'}: {e}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(CYCLES), choices=list(CYCLES), metavar="MODEL")
    parser.add_argument("--weights", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--part", default="xczu3eg")
    parser.add_argument("--cycles", type=int, help="the most between frames")
    parser.add_argument("--kept", type=Path, default=Path(tempfile.gettempdir()) / "qcc-fpga-counts")
    parser.add_argument("--route", action="store_true")
    parser.add_argument("--route-only", action="store_true")
    parser.add_argument("--largest", type=int, default=0)
    parser.add_argument("--layers-only", action="store_true")
    chosen = parser.parse_args()
    chosen.kept.mkdir(parents=True, exist_ok=True)
    device = load_device(chosen.part)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for model in chosen.models:
            for weights in chosen.weights:
                network = streaming(load(model, weights, 1, Path(folder)).graph)
                cycles = chosen.cycles or CYCLES[model]
                if not chosen.route_only:
                    usage, stages, guess, taken = counted(network, device, cycles, chosen.kept)
                    print(row(model, weights, device.name, taken, usage, device.clock_mhz))
                    print(row("  its stages alone", "", "", taken, stages, None))
                    print(row("  as estimated", "", "", taken, guess, None), flush=True)
                if chosen.route or chosen.route_only:
                    larger = device if chosen.layers_only else None
                    for what, taken, usage, clock in routed(network, cycles, chosen.largest, Path(folder), larger):
                        print(row(f"  {what}" if what else model, weights, ROUTER, taken, usage, clock), flush=True)


if __name__ == "__main__":
    main()
