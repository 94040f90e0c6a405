# ruff: noqa: T201 - a measurement prints
"""What rearranging channels does to the real models: one row per model.

    python tests/bench/rearrange.py [--by weights] [--samples N] [--groups] [--target cpu] [MODEL ...]

Classes that are free of all; channels that moved of those that may; operations that the rearranged
graph has more than the original, gathers or others; the largest difference of a float output,
relative to the largest output, under onnxruntime; and how many elements of the integer outputs
differ on the same grids, under onnxruntime and under the numpy reference (the latter on a few
samples). ``--target`` builds both integer graphs for that target, and adds a line: elements that
differ there, and the latency of a single sample after by that before (the least of interleaved
calls). ``--groups`` prints the classes, too. Exits with 8 when an operation is left over, a float
differs by more than 1e-5, or an integer at all.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ort_int8 import batched
from zoo import SUBJECTS, Subject, subject

from qcc.frontend.export import export_onnx
from qcc.frontend.load import load_model
from qcc.ir.graph import Graph
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass, make_target
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel
from qcc_passes.channel_groups import channel_groups
from qcc_passes.rearrange_channels import ChannelOrders

Outputs = dict[str, NDArray[Any]]

HEAD = (
    f"{'model':24} {'classes':>9} {'channels':>13} {'moved':>6} {'left over':>9} {'float diff':>10} "
    f"{'elements':>9} {'differ':>7} {'numpy':>8} {'differ':>7}"
)
CALIBRATION = 64
REFERENCE = 4
"""Samples: to calibrate on, and for the numpy reference."""
CALLS = 300


@dataclass(frozen=True, slots=True)
class Case:
    """A model in four forms: float and integer, as it is and rearranged."""

    floats: tuple[Graph, Graph]
    integers: tuple[Graph, Graph]
    moved: int


def prepare(subject_: Subject, by: str, show: bool) -> Case:
    """The model compiled with and without rearrangement, on the same grids."""
    ctx = PassContext()
    ctx.facts.put(CalibrationData({subject_.input: subject_.calibration[:CALIBRATION]}))

    def run(graph: Graph, *passes: Pass) -> Graph:
        return Pipeline(passes).run(graph, ctx)

    graph = run(load_model(subject_.path).graph, make_pass("fold-batch-norm"), make_pass("canonicalize"))
    if show:
        print(channel_groups(graph).describe())
    quantized = run(graph, make_pass("calibrate"), make_pass("quantize"))
    other = run(quantized, make_pass("rearrange-quantized-channels", {"by": by}))
    integers = (run(quantized, make_pass("dyadic")), run(other, make_pass("dyadic")))
    moved_graph = run(graph, make_pass("rearrange-channels", {"by": by}))
    return Case((graph, moved_graph), integers, ctx.facts.get(ChannelOrders).moved)


def left_over(case: Case) -> int:
    """Operations that rearranging added, constants apart, in floats and in integers."""
    counts = [
        [Counter(o.kind for o in g.ops if o.kind != "constant") for g in pair] for pair in (case.floats, case.integers)
    ]
    return sum((after - before).total() for before, after in counts)


def outputs(graph: Graph, name: str, data: NDArray[Any]) -> Outputs:
    """Under onnxruntime; a graph of fixed batch runs sample by sample."""
    return batched(OrtModel(export_onnx(graph)), name, data, 1 if graph.inputs[0].type.shape[0] == 1 else 16)


def float_difference(case: Case, name: str, data: NDArray[Any]) -> float:
    before, after = (outputs(g, name, data) for g in case.floats)
    return max(float(np.abs(after[k] - v).max() / np.abs(v).max()) for k, v in before.items())


def differing(before: Outputs, after: Outputs) -> tuple[int, int]:
    """Elements of all outputs, and how many of them differ."""
    counts = [(v.size, int((after[k] != v).sum())) for k, v in before.items()]
    return sum(size for size, _ in counts), sum(count for _, count in counts)


def compiled(case: Case, name: str, codes: NDArray[Any], target: str) -> int:
    """Print what the libraries built for ``target`` give and take; how many elements differ."""
    chosen = make_target(target)
    with trial_session(case.integers[0], chosen) as before, trial_session(case.integers[1], chosen) as after:
        sessions = (before, after)
        found = differing(*(dict(s.run({name: codes}, raw=True)) for s in sessions))
        least = [float("inf")] * 2
        for _ in range(CALLS):
            for i, session in enumerate(sessions):
                start = time.perf_counter()
                session.run({name: codes[:1]}, raw=True)
                least[i] = min(least[i], time.perf_counter() - start)
    ratio = f"latency {1e3 * least[0]:.3f} ms before, times {least[1] / least[0]:.3f} after"
    print(f"  {target}: {found[1]} of {found[0]} elements differ, {ratio}", flush=True)
    return found[1]


def judge(subject_: Subject, by: str, samples: int, show: bool, target: str | None) -> bool:
    """Print the row of a model; whether it is as it should be."""
    case = prepare(subject_, by, show)
    groups = channel_groups(case.floats[0])
    reals = subject_.evaluation[:samples]
    grid = case.integers[0].inputs[0].type.quant
    if grid is None:
        raise SystemExit(f"{subject_.name}: its input has no grid")
    codes = grid.quantize(reals)
    difference = float_difference(case, subject_.input, reals)
    fast = differing(*(outputs(g, subject_.input, codes) for g in case.integers))
    count = case.integers[0].inputs[0].type.shape[0]
    few = codes[: count if count > 0 else REFERENCE]
    slow = differing(*(evaluate(g, {subject_.input: few}) for g in case.integers))
    may, total = (sum(len(c.channels) for c in classes) for classes in (groups.free, groups.classes))
    extra = left_over(case)
    print(
        f"{subject_.name:24} {f'{len(groups.free)} of {len(groups.classes)}':>9} {f'{may} of {total}':>13} "
        f"{case.moved:6} {extra:9} {difference:10.1e} {fast[0]:9} {fast[1]:7} {slow[0]:8} {slow[1]:7}",
        flush=True,
    )
    wrong = fast[1] + slow[1] + (compiled(case, subject_.input, codes, target) if target else 0)
    return extra == 0 and difference <= 1e-5 and wrong == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--by", default="weights", help="as of rearrange-channels")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--groups", action="store_true", help="print the classes")
    parser.add_argument("--target", help="build for it, too: cpu, c")
    chosen = parser.parse_args()
    print(HEAD, flush=True)
    options = (chosen.by, chosen.samples, chosen.groups, chosen.target)
    fine = [judge(subject(name), *options) for name in chosen.models or SUBJECTS]
    if not all(fine):
        sys.exit(8)


if __name__ == "__main__":
    main()
