# ruff: noqa: T201 - a measurement prints
"""How fast artifacts are beside onnxruntime and OpenVINO: a row per model, batch, threads, AMX and state of caches.

    python tests/bench/latency.py [--batch 1,8] [--threads 1,2] [--amx on,off] [--weights warm,cold]
                                  [--rounds N] [--folder KEEP] [--json] [MODEL ...]

Compiles each model for several instruction sets, telling how long that took, then runs ``qcc bench`` on it.
A ratio is the peer's median time divided by the artifact's, both measured in one interleaved run.
ResNets have random weights. With a batch, ``singles`` is how many times as long the artifact for batch 1
takes for the same samples, measured right after. ``suite`` stands for ResNet-18, ResNet-50, MobileNetV2 and SqueezeNet.
"""

from __future__ import annotations

import argparse
import json
import os
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

from qcc.commands.doctor import FEATURES, cpu_flags, cpu_model

REAL: Final = ("kws_dscnn", "resnet20_cifar10", "mlperf_tiny_ic_resnet8", "squeezenet1_1", "mobilenet_v2_fc8")
MODELS: Final = (*REAL, *resnets.DEPTHS)
SUITE: Final = ("resnet18", "resnet50", "mobilenet_v2_fc8", "squeezenet1_1")
PEERS: Final = ("onnxruntime fp32", "onnxruntime int8", "openvino int8")
LEVELS: Final = {"on": "native", "off": "avx512vbmi"}
OURS: Final = "qcc integer"
SAMPLES: Final = 64
QUICK: Final = "fold-batch-norm, canonicalize, calibrate{method=minmax}, quantize, dyadic"
"""The pipeline for random weights: there is no accuracy to care for."""
HEAD: Final = (
    f"{'model':24} {'batch':>5} {'threads':>7} {'AMX':>4} {'caches':>6} {'qcc ms':>8} {'ms/sample':>9} {'singles':>8}  "
    + "  ".join(f"{peer:>16}" for peer in PEERS)
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
        seconds = f"build {made['seconds']['build']:.1f} s, all {made['total_seconds']:.1f} s"
        print(f"compiled {path.name}: {seconds}", file=sys.stderr, flush=True)
    return path


@dataclass(frozen=True, slots=True)
class Setting:
    """What one call of ``qcc bench`` measures."""

    batch: int
    amx: str
    threads: int
    weights: str
    rounds: int


def measured(case: Case, folder: Path, setting: Setting) -> list[dict[str, Any]]:
    """A row for each state of the caches."""
    given = ("-d", case.data, "--batch", setting.batch, "--threads", setting.threads, "--rounds", setting.rounds)
    switches = (*given, "--weights", setting.weights, "--amx" if setting.amx == "on" else "--no-amx")
    peers = ("--model", case.model, "--against", "onnxruntime,openvino")
    path = artifact(case, folder, LEVELS[setting.amx], setting.batch, setting.threads)
    found = qcc("bench", path, *peers, *switches)["results"]
    singles: list[Any] = [None] * len(found)
    if setting.batch > 1:
        single = artifact(case, folder, LEVELS[setting.amx], 1, setting.threads)
        singles = qcc("bench", single, *switches)["results"]
    return [_row(case.name, setting, *pair) for pair in zip(found, singles, strict=True)]


def _row(name: str, setting: Setting, result: Any, single: Any) -> dict[str, Any]:
    ours = result["seconds"][OURS]["median"]
    known: dict[str, Any] = {"model": name, "batch": setting.batch, "amx": setting.amx, "singles": None}
    if single is not None:
        known["singles"] = single["seconds"][OURS]["median"] / ours
    return {**known, **result}


def printed(row: dict[str, Any]) -> str:
    """The table's line of a row."""
    ratios, milliseconds = row["times_qcc"], 1000 * row["seconds"][OURS]["median"]
    cells = "  ".join(f"{ratios[p]:16.2f}" if p in ratios else f"{'–':>16}" for p in PEERS)
    singles = f"{'–':>8}" if row["singles"] is None else f"{row['singles']:8.2f}"
    return (
        f"{row['model']:24} {row['batch']:5} {row['threads']:7} {row['amx']:>4} {row['weights']:>6} "
        f"{milliseconds:8.3f} {milliseconds / row['batch']:9.3f} {singles}  {cells}"
    )


def machine() -> str:
    """The processor's model and what it can do."""
    features = [name for name in FEATURES if name in cpu_flags()]
    return f"{cpu_model()} ({platform.machine()}), {os.cpu_count()} processors: {' '.join(features)}"


def choices(text: str, known: Sequence[str] | None = None) -> list[str]:
    """``a,b`` as a list; exits where one is not ``known``."""
    parts = text.split(",")
    if known is not None and (unknown := [p for p in parts if p not in known]):
        raise SystemExit(f"unknown: {unknown[0]}; known: {', '.join(known)}")
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"suite, {', '.join(MODELS)}; default: all")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--amx", default="on,off")
    parser.add_argument("--weights", default="warm,cold")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="keeps artifacts between runs")
    parser.add_argument("--json", action="store_true", help="print one JSON document in place of the table")
    chosen = parser.parse_args()
    asked = [name for m in chosen.models or MODELS for name in (SUITE if m == "suite" else (m,))]
    names, amx = choices(",".join(asked), MODELS), choices(chosen.amx, tuple(LEVELS))
    weights = ",".join(choices(chosen.weights, ("warm", "cold")))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not chosen.json:
            print(f"{machine()}\n\n{HEAD}", flush=True)
        settings = product(names, map(int, choices(chosen.batch)), amx, map(int, choices(chosen.threads)))
        for name, batch, tiles, threads in settings:
            setting = Setting(batch, tiles, threads, weights, chosen.rounds)
            for row in measured(prepared(name, folder), folder, setting):
                rows.append(row)
                if not chosen.json:
                    print(printed(row), flush=True)
    if chosen.json:
        print(json.dumps({"machine": machine(), "rounds": chosen.rounds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
