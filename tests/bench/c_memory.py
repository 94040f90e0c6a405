# ruff: noqa: T201 - a measurement prints
"""ROM and RAM of the C target on a Cortex-M4, and its outputs on emulated Arm: one row per model and width of weights.

    python tests/bench/c_memory.py [--samples N] [--bits 8 4] [MODEL ...]

Models are compiled with ``optimize: size``. The emulated processor runs the same sources, built as
Thumb code for Linux; every output is compared with the numpy reference. Exits with 8 when one differs.
Needs gcc-arm-linux-gnueabihf, libc6-dev-armhf-cross and qemu-user.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from emulated import CORTEX_M4, missing, run_emulated
from zoo import Subject, subject

from qcc.artifact.border import quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.config import make_config
from qcc.driver import compile_model
from qcc.verify.interp import evaluate

HEAD = (
    f"{'model':24} {'bits':>4} {'constants':>9} {'code':>6} {'ROM':>7} {'arena':>7} {'stack':>6} {'RAM':>7} "
    f"{'samples':>7} {'elements':>8}  differ"
)


def judge(case: Subject, bits: int, samples: int | None, folder: Path) -> tuple[str, int]:
    """The row of one model, and how many elements differ."""
    data = folder / "calibration.npz"
    arrays: dict[str, Any] = {case.input: case.calibration}
    np.savez(data, **arrays)
    fields = {
        "model": case.path,
        "output": folder / f"{case.name}-{bits}",
        "data": data,
        "target": {"name": "c", "options": {"optimize": "size", "cross": CORTEX_M4}},
        "passes": {"quantize": {"weight_bits": bits}},
    }
    path = compile_model(make_config(fields)).path
    memory = json.loads((path / "device" / "memory.json").read_text())
    artifact = read_artifact(path)
    graph = read_graph(artifact.files)
    codes = quantize_input(artifact.manifest.inputs[0], case.evaluation[:samples])
    expected = evaluate(graph, {case.input: codes})[graph.outputs[0].name]
    differing = int(np.count_nonzero(run_emulated(graph, path / "device", codes, seconds=3600) != expected))
    constants, code, arena, stack = (memory[k] for k in ("constants", "code", "arena", "stack"))
    row = (
        f"{case.name:24} {bits:4} {constants:9} {code:6} {constants + code:7} {arena:7} {stack:6} {arena + stack:7} "
        f"{len(codes):7} {expected.size:8}  {differing}"
    )
    return row, differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["kws_dscnn", "mlperf_tiny_ic_resnet8"], metavar="MODEL")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    chosen = parser.parse_args()
    if complaint := missing():
        raise SystemExit(complaint)
    print(HEAD, flush=True)
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models:
            for bits in chosen.bits:
                row, count = judge(subject(name), bits, chosen.samples, Path(folder))
                print(row, flush=True)
                differing += count
    if differing:
        sys.exit(8)


if __name__ == "__main__":
    main()
