# ruff: noqa: T201 - a measurement prints
"""Networks as streaming hardware in Verilator: outputs that differ, and cycles between frames, predicted and counted.

    python tests/bench/fpga.py [--images N] [--variants int8 mixed int4 powers] [--cycles C] [--part P]
                               [--count FOLDER] [MODEL ...]

Each network runs twice on its evaluation data: without pauses, which is what the cycles are counted on, and with
random pauses of source and sink in 30 % of the cycles. ``mixed`` has 5 bits a weight on average; in ``powers``, every
weight is rounded to a power of two, and takes no multiplier. Foldings are those that take least of the part within the
cycles. Seconds are from the integer graph to its files, to the simulation, and to both runs. ``--count`` also counts by
yosys what the network takes of the part, and keeps the counts in a folder. Exits with 8 when an output differs from the
reference's, or cycles by more than 2 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from zoo import SUBJECTS, subject

from qcc.artifact.border import quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.ir.graph import Graph, constant, rewrite
from qcc.verify.interp import evaluate
from qcc_targets.fpga.dataflow import streaming
from qcc_targets.fpga.device import Device, load_device
from qcc_targets.fpga.folding import frame_cycles
from qcc_targets.fpga.parts import count_parts
from qcc_targets.fpga.rtl.products import Ports
from qcc_targets.fpga.search import find_foldings
from qcc_targets.fpga.simulation import Pauses, Simulation
from qcc_targets.fpga.synth import Usage
from qcc_targets.fpga.write import write_files

Array = NDArray[Any]

QUICKSTART: Final = Path(__file__).resolve().parents[2] / "examples" / "quickstart"

PASSES: Final[Mapping[str, dict[str, Any]]] = {
    "int8": {},
    "mixed": {"mixed-precision": {"budgets": {"bits": 5}, "tries": 0}},
    "int4": {"quantize": {"weight_bits": 4, "activation_bits": 4}, "widen-residuals": {"bits": 8}},
    "powers": {},
}

CYCLES: Final = {"digits": 4000, "kws_dscnn": 10000, "mlperf_tiny_ic_resnet8": 40000, "resnet20_cifar10": 80000}
"""The most cycles between frames: few multipliers, so that simulations are built and run in a minute or two."""

TOP: Final = "network_top"

IMAGES: Final = {"resnet20_cifar10": 5}

HEAD: Final = (
    f"{'model':22} {'weights':7} {'mults':>5} {'predicted':>9} {'counted':>9} {'off %':>6} {'images':>6} "
    f"{'elements':>8} {'differ':>6} {'write s':>7} {'build s':>7} {'run s':>6}"
)


@dataclass(frozen=True)
class Network:
    """An integer graph and what it takes."""

    name: str
    graph: Graph
    codes: Array


def load(name: str, variant: str, images: int, folder: Path) -> Network:
    """The integer graph of a model, calibrated and rounded as ``variant`` says."""
    if name == "digits":
        path = QUICKSTART / "digits.onnx"
        data = {part: np.load(QUICKSTART / f"{part}.npz")["image"] for part in ("calibration", "evaluation")}
        input_, calibration, evaluation = "image", data["calibration"], data["evaluation"]
    else:
        case = subject(name)
        path, input_, calibration, evaluation = case.path, case.input, case.calibration, case.evaluation
    arrays: dict[str, Any] = {input_: calibration}
    np.savez(folder / "calibration.npz", **arrays)
    output = folder / f"{name}-{variant}"
    fields = {"model": path, "output": output, "data": folder / "calibration.npz", "target": "ref"}
    artifact = read_artifact(compile_model(make_config({**fields, "passes": PASSES[variant]})).path)
    graph = read_graph(artifact.files)
    codes = quantize_input(artifact.manifest.inputs[0], evaluation[:images])
    return Network(name, to_powers(graph) if variant == "powers" else graph, codes)


def to_powers(graph: Graph) -> Graph:
    """``graph`` with every weight of a convolution or dense layer rounded to the nearest power of two."""
    weights = {o.operands[1].name for o in graph.ops if o.kind in ("iconv2d", "idense")}

    def rule(o: Any) -> list[Any] | None:
        if o.kind != "constant" or o.result.name not in weights:
            return None
        sizes = np.abs(o.array.astype(np.int64))
        powers = np.where(sizes > 0, 1 << np.rint(np.log2(np.maximum(sizes, 1))).astype(np.int64), 0)
        rounded = (np.sign(o.array) * np.minimum(powers, 64)).astype(o.array.dtype)
        made = constant(o.result.name, rounded, quant=o.result.type.quant)
        return [replace(made, results=(o.result,))]

    return rewrite(graph, rule)


def judge(network: Network, variant: str, most: int, device: Device, kept: Path | None) -> tuple[str, bool]:
    """The row of a network, and whether all of it is as it should be."""
    graph = network.graph
    inputs = {graph.inputs[0].name: network.codes}
    expected = evaluate(graph, inputs)
    start = time.perf_counter()
    dataflow = streaming(graph)
    foldings = find_foldings(dataflow, device, most).foldings
    files = write_files(dataflow, foldings, TOP, device.clock_mhz, ports=Ports.of(device))
    written = time.perf_counter()
    simulation = Simulation(files)
    built = time.perf_counter()
    runs = [simulation.run(inputs, pauses) for pauses in (Pauses(), Pauses(70, 70, seed=3))]
    done = time.perf_counter()
    differing = sum(int(np.count_nonzero(r.outputs[k] != expected[k])) for r in runs for k in expected)
    elements = sum(a.size for a in expected.values()) * len(runs)
    predicted, counted = frame_cycles(dataflow, foldings), runs[0].interval or 0.0
    off = 100 * (counted / predicted - 1)
    mults = sum(s.multipliers for s in simulation.description.stages)
    row = (
        f"{network.name:22} {variant:7} {mults:5} {predicted:9} {counted:9.1f} {off:6.2f} {len(network.codes):6} "
        f"{elements:8} {differing:6} {written - start:7.1f} {built - written:7.1f} {done - built:6.1f}"
    )
    if kept is not None:
        usage = sum((u for _, u in count_parts(device, files, TOP, kept)), Usage())
        row += f"{usage.luts:8.0f} {usage.flip_flops:6.0f} {usage.dsps:5.0f} {usage.memory_blocks:5.0f}"
    return row, differing == 0 and abs(off) <= 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(CYCLES), choices=["digits", *SUBJECTS], metavar="MODEL")
    parser.add_argument("--variants", nargs="+", default=list(PASSES), choices=list(PASSES))
    parser.add_argument("--images", type=int)
    parser.add_argument("--cycles", type=int)
    parser.add_argument("--part", default="xcku5p")
    parser.add_argument("--count", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    device = load_device(chosen.part)
    if chosen.count is not None:
        chosen.count.mkdir(parents=True, exist_ok=True)
    print(HEAD + (f"{'LUT':>8} {'FF':>6} {'DSP':>5} {'RAM':>5}" if chosen.count else ""), flush=True)
    sound = True
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models:
            for variant in chosen.variants:
                network = load(name, variant, chosen.images or IMAGES.get(name, 50), Path(folder))
                row, fine = judge(network, variant, chosen.cycles or CYCLES.get(name, 40000), device, chosen.count)
                print(row, flush=True)
                sound = sound and fine
    if not sound:
        sys.exit(8)


if __name__ == "__main__":
    main()
