"""qcc's integer networks beside onnxruntime's best static int8: one block per model.

    python tests/bench/accuracy.py [--only qcc] [--recipes MinMax-u8,Percentile-u8] [MODEL ...]

SQNR and agreement are against fp32 onnxruntime on all evaluation data. onnxruntime quantizes
with each of its calibrators; the best of them by SQNR is the yardstick.
"""

# ruff: noqa: T201

from __future__ import annotations

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

from exactness import judge
from ort_int8 import RECIPES, batched, quantized_logits
from zoo import SUBJECTS, Subject, subject

from qcc.errors import QccError
from qcc.verify.compare import agreement, sqnr_db, top1
from qcc.verify.ort import OrtModel


def yardstick(case: Subject, recipes: list[str]) -> None:
    """Print a row for fp32 and one for each of onnxruntime's recipes."""
    batch = 1 if case.labels is None else 16
    exact = batched(OrtModel(case.path), case.input, case.evaluation, batch)
    name = next(iter(exact))
    labels = case.labels
    if labels is not None:
        print(f"  fp32: top-1 {100 * top1(exact[name], labels):.1f} %", flush=True)
    for recipe in (r for r in RECIPES if not recipes or str(r) in recipes):
        try:
            with redirect_stdout(io.StringIO()):  # its calibrators chat
                found = quantized_logits(case.path, recipe, case.input, case.calibration, case.evaluation, batch)
        except (QccError, RuntimeError, ValueError) as e:
            print(f"  onnxruntime {recipe!s:24} fails: {str(e).splitlines()[0]}", flush=True)
            continue
        worst = min(sqnr_db(exact[k], found[k]) for k in exact)
        row = f"  onnxruntime {recipe!s:24} {worst:6.2f} dB"
        if labels is not None:
            shares = (agreement(exact[name], found[name]), top1(found[name], labels))
            row += "  agreement {:.1f} %  top-1 {:.1f} %".format(*(100 * s for s in shares))
        print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--recipes", default="", help="comma-separated; default: all of them")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--only", choices=("qcc", "onnxruntime"), help="leave the other out")
    chosen = parser.parse_args()
    for model in chosen.models or SUBJECTS:
        case = subject(model)
        print(model, flush=True)
        if chosen.only != "onnxruntime":
            with tempfile.TemporaryDirectory() as folder:
                row, _ = judge(case, ["-t", chosen.target], None, Path(folder))
            print(f"  qcc {row}", flush=True)
        if chosen.only != "qcc":
            yardstick(case, [r for r in chosen.recipes.split(",") if r])


if __name__ == "__main__":
    main()
