"""Runs networks on an NVIDIA GPU. Needs its driver; neither a compiler nor NVIDIA's toolkit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest
from qcc.errors import ArtifactError
from qcc.runtime.cuda_driver import Driver
from qcc.runtime.cuda_network import CudaNetwork
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram

FOLDER: Final = "device"


Arrays = Mapping[str, NDArray[Any]]


class CudaBackend:
    """The backend ``cuda``: one graph launch per ``batch`` samples, on the GPU numbered ``device``.

    A rest of fewer samples is computed with padding. Threads take turns.
    """

    alignment: Final = 1
    """The driver copies from any address."""

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int, *, device: int = 0) -> None:
        read = reader(files)
        self.program = CudaProgram.from_bytes(read(CUDA_PROGRAM))
        self.network = CudaNetwork(self.program, read, Driver(device))
        self._turn = threading.Lock()

    def run(self, inputs: Arrays, batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output from codes of every input."""
        with self._turn:
            return run_batches(self.program, self.network.run, inputs, batch)


def reader(files: Mapping[str, Path]) -> Callable[[str], bytes]:
    """The function that gives the contents of a target's file. It raises ArtifactError where there is none."""

    def read(name: str) -> bytes:
        if (path := files.get(f"{FOLDER}/{name}")) is None:
            raise ArtifactError(f"the artifact holds no {FOLDER}/{name}")
        return path.read_bytes()

    return read


def run_batches(
    program: CudaProgram, run: Callable[[Arrays], Arrays], inputs: Arrays, batch: int
) -> dict[str, NDArray[Any]]:
    """Outputs of ``batch`` samples by calls of ``run``, each of which computes as many as ``program`` takes."""
    outputs = {a.name: np.empty((batch, *a.shape[1:]) if a.batched else a.shape, a.dtype) for a in program.outputs}
    for start in range(0, batch, program.batch):
        count = min(program.batch, batch - start)
        results = run({a.name: _samples(inputs[a.name], a.batched, start, a.shape) for a in program.inputs})
        for a in program.outputs:
            if a.batched:
                outputs[a.name][start : start + count] = results[a.name][:count]
            else:
                outputs[a.name] = results[a.name]
    return outputs


def _samples(array: NDArray[Any], batched: bool, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """The samples from ``start`` on that one launch takes, filled up with zeros where there are fewer."""
    part = array[start : start + shape[0]] if batched else array
    if part.shape == shape:
        return part
    full = np.zeros(shape, array.dtype)
    full[: len(part)] = part
    return full
