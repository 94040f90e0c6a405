# ruff: noqa: T201 - a measurement prints
"""The real models on the CUDA target, without a GPU: one row per model. Needs g++ and nvdisasm.

    python tests/bench/cuda_models.py [--samples N] [--checked N] [--device simt] [--folder KEEP] [MODEL ...]

Every artifact holds machine code for five architectures. Its kernels run on real inputs through the SIMT runtime (or,
with ``--device 0``, on a GPU), and every element of every output is compared with the numpy reference; on some inputs
with the race check, too. ``IMMA`` counts the convolutions that read at least 32 channels and whose machine code
uses tensor cores, of all such, on the architecture with the fewest. Exits with 8 when an element differs, or one of
those convolutions lacks them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from exactness import qcc
from zoo import SUBJECTS, Subject, subject

from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.ir.graph import Graph
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram
from qcc_targets.cuda.disassembly import TENSOR, count_of, instructions

CHANNELS = 32

HEAD = (
    f"{'model':24} {'compile s':>9} {'samples':>7} {'elements':>9} {'differ':>6} {'run s':>6} "
    f"{'checked':>7} {'differ':>6} {'kernels':>7} {'machine code':>24}  IMMA"
)


def wide_convolutions(graph: Graph) -> list[str]:
    """The results of the convolutions that read at least ``CHANNELS`` channels, all of them for each result."""
    found = [o for o in graph.ops if o.kind == "iconv2d" and o.int_attr("groups") == 1]
    return [o.result.name for o in found if o.operands[0].type.shape[1] >= CHANNELS]


def tensor_cores(path: Path) -> tuple[CudaProgram, int, int]:
    """The program of an artifact, and how many of its wide convolutions, and of how many, always use tensor cores."""
    artifact = read_artifact(path)
    program = CudaProgram.from_bytes(artifact.read(f"device/{CUDA_PROGRAM}"))
    wide = wide_convolutions(read_graph(artifact.files))
    kernels = {name: [one.kernel for one in program.launches if one.result == name] for name in wide}
    fewest = len(wide)
    for image in program.images:
        if not image.portable:
            found = instructions(artifact.files[f"device/{image.file}"])
            fewest = min(fewest, sum(any(count_of(found[k], TENSOR) for k in kernels[name]) for name in wide))
    return program, fewest, len(wide)


def differing(artifact: Path, case: Subject, samples: int, device: str, folder: Path) -> tuple[int, int, float]:
    """How many elements were compared, how many differ, and seconds."""
    if not samples:
        return 0, 0, 0.0
    data: dict[str, Any] = {case.input: case.evaluation[:samples]}
    np.savez(folder / "evaluation.npz", **data)
    start = time.perf_counter()
    given = ("--model", str(case.path), "-d", str(folder / "evaluation.npz"), "--device", device)
    report = qcc("verify", str(artifact), *given)
    (found,) = (e for e in report["engines"] if "cuda" in e["name"])
    return found["elements"], found["differing"], time.perf_counter() - start


def judge(case: Subject, samples: int, checked: int, device: str, folder: Path) -> tuple[str, bool]:
    """The row of one model, and whether all holds."""
    artifact = folder / f"{case.name}.qcc"
    start = time.perf_counter()
    if not artifact.exists():
        calibration: dict[str, Any] = {case.input: case.calibration}
        np.savez(folder / "calibration.npz", **calibration)
        data = ("-d", str(folder / "calibration.npz"))
        qcc("compile", str(case.path), *data, "-t", "cuda", "-o", str(artifact))
    compiled = time.perf_counter() - start
    program, fewest, wide = tensor_cores(artifact)
    elements, differ, seconds = differing(artifact, case, samples, device, folder)
    _, raced, _ = differing(artifact, case, checked, "simt-racecheck", folder)
    images = " ".join(i.arch.removeprefix("sm_") for i in program.images if not i.portable)
    row = (
        f"{case.name:24} {compiled:9.1f} {samples:7} {elements:9} {differ:6} {seconds:6.1f} "
        f"{checked:7} {raced:6} {len(program.launches):7} {images:>24}  {fewest}/{wide}"
    )
    return row, not differ and not raced and fewest == wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(SUBJECTS))
    parser.add_argument("--samples", type=int, default=8, help="inputs to compare on")
    parser.add_argument("--checked", type=int, default=1, help="inputs to compare on with the race check")
    parser.add_argument("--device", default="simt")
    parser.add_argument("--folder", type=Path, help="where artifacts stay, and are taken from where they are already")
    chosen = parser.parse_args()
    print(HEAD, flush=True)
    holds = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in chosen.models or SUBJECTS:
            row, good = judge(subject(name), chosen.samples, chosen.checked, chosen.device, folder)
            print(row, flush=True)
            holds = holds and good
    if not holds:
        sys.exit(8)


if __name__ == "__main__":
    main()
