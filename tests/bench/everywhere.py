# ruff: noqa: T201 - a measurement prints
"""One integer graph in every execution: the sha256 of all output bytes, which must be one and the same.

    python tests/bench/everywhere.py [--samples N] [--fpga MODEL,…] [--gpu N] [MODEL ...]

A model is compiled once, for a target that has every operation; its integer graph then goes unchanged to numpy,
onnxruntime (as standard ONNX) and to each target: cpu, c, cuda (its kernels' source on the host, and with ``--gpu 0``
on a GPU), and, for the networks named, fpga (in simulation). ``digits`` is the network of the quickstart.
What a target cannot build, or this machine cannot run, is said in its row. Exits with 8 when two sums differ.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from exactness import qcc
from numpy.typing import NDArray
from zoo import SUBJECTS, subject

from qcc.artifact.border import quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.store import read_artifact
from qcc.errors import QccError
from qcc.frontend.export import export_onnx
from qcc.frontend.naming import legal
from qcc.ir.graph import Graph
from qcc.ir.text import render
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_target
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel

Arrays = Mapping[str, NDArray[Any]]
QUICKSTART: Final = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
DIGITS: Final = "digits"
MODELS: Final = (DIGITS, "kws_dscnn", "mlperf_tiny_ic_resnet8", "resnet20_cifar10")
CUDA: Final = {"arch": "compute_75"}
"""For the kernels' source; a GPU gets the default architectures."""


def compiled(name: str, samples: int, folder: Path) -> tuple[Path, dict[str, NDArray[Any]]]:
    """An artifact of the model ``name``, and real inputs for it."""
    if name == DIGITS:
        model, data = QUICKSTART / "digits.onnx", dict(np.load(QUICKSTART / "evaluation.npz"))
        calibration = QUICKSTART / "calibration.npz"
    else:
        case = subject(name)
        model, data, calibration = case.path, {case.input: case.evaluation}, folder / "calibration.npz"
        arrays: dict[str, Any] = {case.input: case.calibration}
        np.savez(calibration, **arrays)
    artifact = folder / f"{name}.qcc"
    qcc("compile", str(model), "-d", str(calibration), "-t", "ref", "-o", str(artifact), "--force")
    return artifact, {key: array[:samples] for key, array in data.items()}


def executions(graph: Graph, codes: Arrays, fpga: bool, gpu: int | None) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Every execution by name."""
    yield "numpy reference", lambda: in_steps(graph, codes, lambda part: evaluate(graph, part))
    yield "onnxruntime, integer graph", lambda: _onnxruntime(graph, codes)
    yield "cpu", lambda: _on_target(graph, codes, "cpu", {})
    yield "c", lambda: _on_target(graph, codes, "c", {})
    yield "cuda, source on the host", lambda: _on_target(graph, codes, "cuda", CUDA, "simt")
    if gpu is not None:
        yield f"cuda, GPU {gpu}", lambda: _on_target(graph, codes, "cuda", {}, gpu)
    if fpga:
        yield "fpga, simulation", lambda: _on_target(graph, codes, "fpga", {})


def _onnxruntime(graph: Graph, codes: Arrays) -> Arrays:
    model = OrtModel(export_onnx(graph))

    def run(part: Arrays) -> Arrays:
        results = model.run({name: part[legal(name)] for name in model.inputs})
        return {legal(name): array for name, array in results.items()}

    return in_steps(graph, codes, run)


def in_steps(graph: Graph, codes: Arrays, run: Callable[[Arrays], Arrays]) -> dict[str, NDArray[Any]]:
    """``run`` on all samples; a graph of a fixed leading size takes as many at once."""
    size = graph.inputs[0].type.shape[0]
    if size == BATCH:
        return dict(run(codes))
    starts = range(0, len(codes[graph.inputs[0].name]), size)
    parts = [run({name: a[start : start + size] for name, a in codes.items()}) for start in starts]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _on_target(
    graph: Graph, codes: Arrays, name: str, options: Mapping[str, Any], device: int | str | None = None
) -> Arrays:
    target = make_target(name, options)
    legalized = Pipeline(tuple(target.passes())).run(graph, PassContext(capabilities=target.capabilities))
    if render(legalized) != render(graph):
        raise QccError(f"the target {name} rewrites the graph")
    with trial_session(graph, target, device=device) as session:
        return session.run(codes, raw=True)


def digest(graph: Graph, outputs: Arrays) -> str:
    """The sum of the bytes of all outputs, in their order, as little-endian arrays of their element types."""
    total = hashlib.sha256()
    for value in graph.outputs:
        array = outputs[value.name]
        if array.dtype != value.type.numpy:
            raise QccError(f"output '{value.name}' came as {array.dtype}")
        total.update(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes())
    return total.hexdigest()


def table(graph: Graph, codes: Arrays, fpga: bool, gpu: int | None) -> bool:
    """Print the rows of one graph; whether all sums are equal."""
    sums = set()
    for name, run in executions(graph, codes, fpga, gpu):
        start = time.perf_counter()
        try:
            found = digest(graph, run())
            sums.add(found)
        except (QccError, ImportError) as e:
            found = f"not run: {' '.join(str(e).split())[:150]}"
        print(f"  {name:28} {time.perf_counter() - start:8.1f} s  {found}", flush=True)
    return len(sums) == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join((DIGITS, *SUBJECTS)))
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--fpga", default=",".join(MODELS), help="networks to simulate as hardware, too; '' for none")
    parser.add_argument("--gpu", type=int, help="the number of a GPU to run on, too")
    chosen = parser.parse_args()
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen.models or MODELS:
            artifact, data = compiled(name, chosen.samples, Path(folder))
            opened = read_artifact(artifact)
            graph = read_graph(opened.files)
            codes = {s.name: quantize_input(s, data[s.name]) for s in opened.manifest.inputs}
            print(f"{name}, {chosen.samples} inputs: {', '.join(map(str, opened.manifest.outputs))}", flush=True)
            equal = table(graph, codes, name in chosen.fpga.split(","), chosen.gpu) and equal
    if not equal:
        sys.exit(8)


if __name__ == "__main__":
    main()
