"""Time and memory of measuring sensitivities: seconds and the peak resident memory of a fresh process.

    python tests/bench/sensitivity.py [--samples 256] [--method gauss-newton] MODEL

Calibration data are taken first, then evaluation data, until there are enough.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import time

import numpy as np
from zoo import SUBJECTS, subject

from qcc.driver import peak_rss_bytes
from qcc.frontend.load import load_model
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SUBJECTS)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--method", default="gauss-newton", help="what follows sensitivity- in the name of the pass")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    case = subject(chosen.model)
    data = np.concatenate([case.calibration, case.evaluation])[: chosen.samples].astype(np.float32)
    path, name = case.path, case.input
    del case
    ctx = PassContext(threads=chosen.threads)
    ctx.facts.put(CalibrationData({name: data}))
    graph = Pipeline((make_pass("fold-batch-norm"), make_pass("canonicalize"))).run(load_model(path).graph, ctx)
    before, cpu, start = peak_rss_bytes(), time.process_time(), time.perf_counter()
    measure = make_pass(f"sensitivity-{chosen.method}", {"samples": chosen.samples, "held_out": 0})
    Pipeline((measure,)).run(graph, ctx)
    seconds, used = time.perf_counter() - start, time.process_time() - cpu
    print(f"{chosen.model}, {len(data)} samples, {measure}: {seconds:.0f} s ({used:.0f} s of processor time)")
    print(
        f"peak memory {peak_rss_bytes() / 2**20:.0f} MiB, {before / 2**20:.0f} MiB of it with the data and model loaded"
    )


if __name__ == "__main__":
    main()
