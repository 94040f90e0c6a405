# ruff: noqa: T201 - a measurement prints
"""Every instruction set against the numpy reference, on every model: elements that differ, one row each.

    python tests/bench/levels.py [--samples N] [--emulated N] [--isa amx,…] [--quick] [MODEL ...]

The real models and the random ResNets are compiled once, for all instruction sets that this processor has
(AMX, AVX-512 with and without VNNI and VBMI, AVX-VNNI, AVX2, plain x86-64), and run through the public session;
the levels of AArch64 run on an emulated processor, on fewer samples. Exits with 8 when an element differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import resnets
from aarch64 import missing, run_emulated
from everywhere import in_steps
from latency import QUICK
from numpy.typing import NDArray
from zoo import SUBJECTS, subject

from qcc.artifact.border import quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.runtime import load
from qcc.verify.interp import evaluate
from qcc_targets.cpu.isa import LEVELS, available

MODELS: Final = (*SUBJECTS, *resnets.DEPTHS)
CALIBRATION: Final = 32
HEAD: Final = f"{'model':24} {'level':12} {'samples':>7} {'elements':>9} {'differ':>7} {'seconds':>8}"


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one level."""

    model: str
    level: str
    samples: int
    elements: int
    differ: int
    seconds: float

    def __str__(self) -> str:
        counts = f"{self.samples:7} {self.elements:9} {self.differ:7} {self.seconds:8.1f}"
        return f"{self.model:24} {self.level:12} {counts}"


def given(name: str, folder: Path, samples: int) -> tuple[Path, str, NDArray[Any], NDArray[Any]]:
    """The model's file, its input, reals to calibrate with and reals to judge by."""
    if name in SUBJECTS:
        case = subject(name)
        return case.path, case.input, case.calibration[:CALIBRATION], case.evaluation[:samples]
    images = resnets.images(4 + samples)
    return resnets.write(name, folder), resnets.INPUT, images[:4], images[4:]


def judged(name: str, folder: Path, levels: list[str], samples: int, emulated: int, *, quick: bool) -> Iterator[Row]:
    """The rows of one model."""
    path, source, calibration, reals = given(name, folder, samples)
    arrays: dict[str, Any] = {source: calibration}
    np.savez(folder / f"{name}.npz", **arrays)
    native = [level for level in levels if LEVELS[level] in available()]
    fields: dict[str, Any] = {
        "model": path,
        "output": folder / f"{name}.qcc",
        "data": folder / f"{name}.npz",
        "target": {"name": "cpu", "options": {"isa": native or ["native"]}},
    }
    if quick or name in resnets.DEPTHS:
        fields["pipeline"] = QUICK
    artifact = read_artifact(compile_model(make_config(fields)).path)
    graph = read_graph(artifact.files)
    (spec,) = artifact.manifest.inputs
    codes = quantize_input(spec, reals)
    expected = in_steps(graph, {source: codes}, lambda part: evaluate(graph, part))
    for level in levels:
        start = time.perf_counter()
        if level in native:
            got = load(folder / f"{name}.qcc", isa=level).run({source: reals}, raw=True)
        else:
            some = {source: codes[: max(emulated, graph.inputs[0].type.shape[0])]}
            got = in_steps(graph, some, partial(run_emulated, graph, LEVELS[level]))
        seconds, count = time.perf_counter() - start, len(next(iter(got.values())))
        differ = sum(int((got[k] != expected[k][:count]).sum()) for k in expected)
        yield Row(name, level, count, sum(array.size for array in got.values()), differ, seconds)


def main() -> None:
    arm = [name for name, level in LEVELS.items() if level.machine == "aarch64"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--isa", default=",".join([*(level.name for level in available()), *arm]))
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--emulated", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="compile without rounding and correcting weights")
    chosen = parser.parse_args()
    if unknown := [m for m in chosen.models if m not in MODELS]:
        raise SystemExit(f"unknown: {unknown[0]}; known: {', '.join(MODELS)}")
    levels, complaint = chosen.isa.split(","), missing()
    if complaint is not None and set(levels) & set(arm):
        print(complaint, file=sys.stderr)
        levels = [level for level in levels if level not in arm]
    print(HEAD, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models or MODELS:
            for row in judged(name, Path(folder), levels, chosen.samples, chosen.emulated, quick=chosen.quick):
                print(row, flush=True)
                rows.append(row)
    differing = sum(row.differ for row in rows)
    print(f"{sum(row.elements for row in rows)} elements, {differing} differ")
    if differing:
        sys.exit(8)


if __name__ == "__main__":
    main()
