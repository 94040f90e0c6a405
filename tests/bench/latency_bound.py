"""Latencies that a search predicts for mixed bits beside those of the compiled networks.

    python tests/bench/latency_bound.py [--budgets 3] [--target cpu] [MODEL ...]

Layers are timed at every width, as ``qcc search --latency`` does; budgets are spread between the
fastest and the slowest uniform network. Each point is compiled, and timed in turns with the others.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from zoo import SUBJECTS, Subject, subject

from qcc.config import make_config, read_fields
from qcc.driver import compile_model
from qcc.latency import end_to_end, measured_table
from qcc.runtime import load
from qcc.search import search


def judge(case: Subject, count: int, target: str, folder: Path) -> None:
    """Print predicted and measured milliseconds of each point, and of the uniform networks."""
    arrays: dict[str, Any] = {case.input: case.calibration.astype(np.float32)}
    np.savez(folder / "data.npz", **arrays)
    fields = {"model": case.path, "output": folder / "net.qcc", "target": target, "data": str(folder / "data.npz")}
    passes = {"mixed-precision": {"objectives": ["separate"], "scored_by": {}}}
    config = make_config({**fields, "passes": passes, "cache": folder / "cache"})
    path = folder / "latency.json"
    table = measured_table(config, path)
    for row in table.end_to_end:
        _print(f"uniform {row.weight_bits} bits", row.predicted, row.measured)
    whole = [row.predicted for row in table.end_to_end]
    budgets = tuple(np.linspace(min(whole), max(whole), count + 1)[1:])
    report = search(config.model_copy(update={"latency": path}), {"latency": budgets}, folder / "search")
    points = [p for p in report.points if p.config is not None]
    sessions = {}
    for p in points:
        compiled = compile_model(make_config(read_fields(folder / "search" / str(p.config))))
        sessions[p.config] = load(compiled.path)
    for p, seconds in zip(points, end_to_end(sessions).values(), strict=True):
        _print(f"budget {1e3 * p.budgets['latency']:.3f} ms, {p.costs['bits']:.2f} bits", p.costs["latency"], seconds)


def _print(what: str, predicted: float, measured: float) -> None:
    off = 100 * (predicted / measured - 1)
    print(f"  {what:32} predicted {1e3 * predicted:.4f} ms, measured {1e3 * measured:.4f} ms: {off:+.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--budgets", type=int, default=3)
    parser.add_argument("--target", default="cpu")
    chosen = parser.parse_args()
    for model in chosen.models or ("resnet20_cifar10", "kws_dscnn"):
        print(model, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            judge(subject(model), chosen.budgets, chosen.target, Path(folder))


if __name__ == "__main__":
    main()
