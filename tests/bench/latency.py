# ruff: noqa: T201 - a measurement prints
"""How fast artifacts are beside onnxruntime and OpenVINO: one row per model, batch, threads and AMX setting.

    python tests/bench/latency.py [--batch 1,8] [--threads 1,2] [--amx on,off] [--folder KEEP] [MODEL ...]

Compiles each model for several instruction sets, then runs ``qcc bench`` on it. A ratio is the peer's
median time divided by the artifact's, both measured in one interleaved run. ResNets have random weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import resnets
from zoo import data_folder, subject

REAL: Final = ("kws_dscnn", "resnet20_cifar10", "mlperf_tiny_ic_resnet8", "squeezenet1_1", "mobilenet_v2_fc8")
MODELS: Final = (*REAL, *resnets.DEPTHS)
PEERS: Final = ("onnxruntime fp32", "onnxruntime int8", "openvino int8")
LEVELS: Final = {"on": "native", "off": "avx512vbmi"}
SAMPLES: Final = 64
QUICK: Final = "fold-batch-norm, canonicalize, calibrate{method=minmax}, quantize, dyadic"
"""The pipeline for random weights: there is no accuracy to care for."""
HEAD: Final = f"{'model':24} {'batch':>5} {'threads':>7} {'AMX':>4} {'qcc ms':>8}  " + "  ".join(
    f"{peer:>16}" for peer in PEERS
)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    model: Path
    data: Path


def qcc(*arguments: object) -> Any:
    """The JSON that a qcc command prints."""
    command = [sys.executable, "-m", "qcc", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"qcc {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def prepared(name: str, folder: Path) -> Case:
    """The model's file, and calibration data for it in ``folder``."""
    data = folder / f"{name}.npz"
    if name in REAL:
        model = data_folder() / "models" / f"{name}.onnx"
        if not data.exists():
            case = subject(name)
            arrays: dict[str, Any] = {case.input: case.calibration[:SAMPLES]}
            np.savez(data, **arrays)
        return Case(name, model, data)
    if not data.exists():
        given: dict[str, Any] = {resnets.INPUT: resnets.images(4)}
        np.savez(data, **given)
    model = folder / f"{name}.onnx"
    return Case(name, model if model.exists() else resnets.write(name, folder), data)


def artifact(case: Case, folder: Path, level: str, batch: int, threads: int) -> Path:
    """The artifact, compiled unless an earlier run kept it."""
    path = folder / f"{case.name}-{level}-b{batch}-t{threads}.qcc"
    if not path.exists():
        target = ("-t", "cpu", "-O", f"isa={level}", "-O", f"batch={batch}", "-O", f"threads={threads}")
        passes = ("--pipeline", QUICK) if case.name in resnets.DEPTHS else ()
        made = qcc("compile", case.model, "-d", case.data, "-o", path, *target, *passes)
        print(f"compiled {path.name}: build {made['seconds']['build']:.1f} s, all {made['total_seconds']:.1f} s")
    return path


def row(case: Case, folder: Path, batch: int, amx: str, threads: int, rounds: int) -> str:
    """The table's row of one model, batch, AMX setting and number of threads."""
    path = artifact(case, folder, LEVELS[amx], batch, threads)
    arguments = ("--model", case.model, "-d", case.data, "--against", "onnxruntime,openvino", "--weights", "warm")
    switches = ("--batch", batch, "--threads", threads, "--rounds", rounds, "--amx" if amx == "on" else "--no-amx")
    return _row(case.name, batch, amx, qcc("bench", path, *arguments, *switches)["results"][0])


def _row(name: str, batch: int, amx: str, result: Any) -> str:
    seconds, ratios = result["seconds"], result["times_qcc"]
    ours = f"{1000 * seconds['qcc integer']['median']:8.3f}"
    cells = "  ".join(f"{ratios[p]:16.2f}" if p in ratios else f"{'–':>16}" for p in PEERS)
    return f"{name:24} {batch:5} {result['threads']:7} {amx:>4} {ours}  {cells}"


def machine() -> str:
    """The processor's model and what it can do."""
    report = qcc("doctor")["system"]
    return f"{report['processor']} ({platform.machine()}), {report['processors']} processors: " + " ".join(
        report["features"]
    )


def choices(text: str, known: Sequence[str] | None = None) -> list[str]:
    """``a,b`` as a list; exits where one is not ``known``."""
    parts = text.split(",")
    if known is not None and (unknown := [p for p in parts if p not in known]):
        raise SystemExit(f"unknown: {unknown[0]}; known: {', '.join(known)}")
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--amx", default="on,off")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="keeps artifacts between runs")
    chosen = parser.parse_args()
    names = choices(",".join(chosen.models or MODELS), MODELS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{machine()}\n\n{HEAD}", flush=True)
        amx = choices(chosen.amx, tuple(LEVELS))
        settings = product(names, map(int, choices(chosen.batch)), amx, map(int, choices(chosen.threads)))
        for name, batch, tiles, threads in settings:
            print(row(prepared(name, folder), folder, batch, tiles, threads, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()
