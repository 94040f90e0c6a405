# ruff: noqa: T201 - a measurement prints
"""Compile the real models and verify them on all their evaluation data: one row per model.

    python tests/bench/exactness.py [--target cpu] [-O OPTION=VALUE ...] [--samples N] [MODEL ...]

Every output element of the compiled artifact and of onnxruntime on the integer graph is compared
with the numpy reference. Exits with 8 when one differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from zoo import SUBJECTS, Subject, subject

HEAD = (
    f"{'model':24} {'samples':>7} {'compile s':>9} {'peak MiB':>8} "
    f"{'SQNR dB':>8} {'agree %':>8} {'elements':>9}  differ"
)


def qcc(*arguments: str) -> Any:
    """The JSON that a qcc command prints; exit code 8 (a difference) is for the caller to see in it."""
    done = subprocess.run(
        [sys.executable, "-m", "qcc", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 8):
        raise SystemExit(f"qcc {' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def judge(case: Subject, target: list[str], samples: int | None, folder: Path) -> tuple[str, int]:
    """The row of one model, and how many elements differ; ``target`` as arguments of ``qcc compile``."""
    evaluation: dict[str, Any] = {case.input: case.evaluation[:samples]}
    if case.labels is not None:
        evaluation["labels"] = case.labels[:samples]
    calibration: dict[str, Any] = {case.input: case.calibration}
    np.savez(folder / "calibration.npz", **calibration)
    np.savez(folder / "evaluation.npz", **evaluation)
    artifact = str(folder / f"{case.name}.qcc")
    start = time.perf_counter()
    data = ("-d", str(folder / "calibration.npz"))
    compiled = qcc("compile", str(case.path), *data, *target, "-o", artifact, "--force")
    seconds = time.perf_counter() - start
    report = qcc("verify", artifact, "--model", str(case.path), "-d", str(folder / "evaluation.npz"))
    found = [e["differing"] for e in report["engines"]]
    outputs = report["outputs"]
    row = (
        f"{case.name:24} {len(case.evaluation[:samples]):7} {seconds:9.1f} {compiled['peak_rss_bytes'] / 2**20:8.0f} "
        f"{min(o['sqnr_db'] for o in outputs):8.2f} {_percent(outputs):>8} {report['engines'][0]['elements']:9}  "
        + ", ".join(f"{e['name']}: {e['differing']}" for e in report["engines"])
    )
    return row, sum(found)


def _percent(outputs: list[dict[str, Any]]) -> str:
    shares = [o["agreement"] for o in outputs if o.get("agreement") is not None]
    return f"{100 * min(shares):.2f}" if shares else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--target", default="cpu")
    parser.add_argument("-O", dest="options", action="append", default=[], metavar="OPTION=VALUE")
    parser.add_argument("--samples", type=int)
    chosen = parser.parse_args()
    print(HEAD, flush=True)
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models or SUBJECTS:
            target = ["-t", chosen.target, *(f"-O{option}" for option in chosen.options)]
            row, count = judge(subject(name), target, chosen.samples, Path(folder))
            print(row, flush=True)
            differing += count
    if differing:
        sys.exit(8)


if __name__ == "__main__":
    main()
