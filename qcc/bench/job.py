"""One benchmark: an artifact, its peers, thread counts, warm and cold caches."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from qcc.bench.ort_gpu_peer import OrtGpuPeer, batch_of, check_provider, in_half_precision, with_batch
from qcc.bench.peers import Call, onnxruntime_call, openvino_call, quantized_by_onnxruntime
from qcc.bench.timing import Timing, measure
from qcc.bench.torch_peer import TorchPeer
from qcc.errors import ModelError
from qcc.passmgr.context import Progress
from qcc.runtime import load
from qcc.runtime.permission import forbid_amx

Arrays = Mapping[str, NDArray[Any]]
QCC: Final = "qcc integer"


@dataclass(frozen=True, slots=True)
class Job:
    """What to time. ``inputs`` is one call's arrays for the artifact, ``model_inputs`` for ``model``.

    ``samples`` are what onnxruntime calibrates on; ``weights`` says ``warm``, ``cold``, or both; ``isa`` and
    ``device`` are as for ``load``; peers on a GPU use the same one.
    """

    artifact: Path
    inputs: Arrays
    threads: Sequence[int] = (1,)
    rounds: int = 30
    weights: Sequence[str] = ("warm", "cold")
    against: Sequence[str] = ()
    model: Path | None = None
    model_inputs: Arrays | None = None
    samples: Sequence[Arrays] = ()
    isa: str | None = None
    device: int | str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """The seconds per call of every engine, the artifact's first, under one setting."""

    threads: int
    weights: str
    seconds: Mapping[str, Timing]


@dataclass(frozen=True, slots=True)
class Outcome:
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    """Peers that could not run, and why."""


def run(job: Job, progress: Progress | None = None) -> Outcome:
    """Time ``job`` in this process. Raises ArtifactError, and ConfigError where a peer is not installed."""
    notes: list[str] = []
    with tempfile.TemporaryDirectory(prefix="qcc-bench-") as scratch:
        folder = Path(scratch)
        int8 = _quantized(job, folder, notes)
        rows = tuple(
            Row(threads, weights, measure(engines, job.rounds, cold=weights == "cold", progress=progress))
            for threads in job.threads
            for engines in [dict(_engines(job, threads, int8, folder, notes))]
            for weights in job.weights
        )
    return Outcome(rows, tuple(dict.fromkeys(notes)))


def run_without_amx(job: Job) -> Outcome:
    """Time ``job`` in a process of its own in which no library may use AMX."""
    with ProcessPoolExecutor(1, get_context("spawn"), forbid_amx) as pool:
        return pool.submit(run, job).result()


def _quantized(job: Job, folder: Path, notes: list[str]) -> Path | None:
    if job.model is None or not job.against:
        return None
    try:
        return quantized_by_onnxruntime(job.model, job.samples, folder)
    except ModelError as e:
        notes.append(str(e))
        return None


def _engines(job: Job, threads: int, int8: Path | None, folder: Path, notes: list[str]) -> Iterator[tuple[str, Call]]:
    session = load(job.artifact, threads, isa=job.isa, device=job.device)
    yield QCC, lambda: session.run(job.inputs)
    arrays = job.model_inputs or {}
    device = job.device if isinstance(job.device, int) else 0

    def in_half(model: Path, arrays: Arrays, threads: int) -> Call:
        check_provider()
        return OrtGpuPeer(in_half_precision(model, batch_of(arrays), folder), arrays, device)

    def on_gpu(model: Path, arrays: Arrays, threads: int) -> Call:
        check_provider()
        return OrtGpuPeer(with_batch(model, batch_of(arrays), folder), arrays, device)

    wanted: list[tuple[str, str, Path | None, Callable[[Path, Arrays, int], Call]]] = [
        ("onnxruntime fp32", "onnxruntime", job.model, onnxruntime_call),
        ("onnxruntime int8", "onnxruntime", int8, onnxruntime_call),
        ("openvino int8", "openvino", int8, openvino_call),
        ("onnxruntime-gpu fp16", "onnxruntime-gpu", job.model, in_half),
        ("onnxruntime-gpu int8", "onnxruntime-gpu", int8, on_gpu),
        ("torch fp16", "torch", job.model, lambda model, arrays, threads: TorchPeer(model, arrays, device)),
    ]
    for name, peer, model, make in wanted:
        if peer in job.against and model is not None:
            try:
                yield name, make(model, arrays, threads)
            except ModelError as e:
                notes.append(f"{name}: {e}")
