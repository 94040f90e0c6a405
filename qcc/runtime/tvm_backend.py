"""Runs networks that TVM compiled for the CPU. Needs no TVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.border import quantize_input
from qcc.artifact.manifest import Manifest, TensorSpec
from qcc.errors import ArtifactError
from qcc.runtime.levels import choose
from qcc.runtime.program import PROGRAM, Program
from qcc.runtime.tvm_border import NativeBorder
from qcc.runtime.tvm_direct import Direct
from qcc.runtime.tvm_network import Network

FOLDER: Final = "device"


class TvmBackend:
    """The backend ``tvm``: one call per ``batch`` samples, each in an arena of its own.

    Of several instruction sets it takes the richest that this machine has, or ``isa``. The
    constants stay in their file, mapped; arenas are reused. Several threads share a call where the
    artifact was compiled for it, and spread over the samples of a batch that takes as many calls.
    """

    alignment: Final = 1
    """The library takes arrays of any alignment."""

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int, *, isa: str | None = None) -> None:
        program = Program.from_bytes(_file(files, PROGRAM).read_bytes())
        level = choose(program, isa)
        constants = np.memmap(_file(files, level.constants), mode="r")
        self.network = Network(program, level, _file(files, level.library), constants, threads)
        border = level.border
        self._border = NativeBorder(_file(files, border), manifest.inputs) if border is not None else None
        direct = Direct.of(manifest, self._border, self.network)
        self.direct: Callable[[Mapping[str, Any], bool], dict[str, NDArray[Any]] | None]
        self.direct = _never if direct is None else direct.run
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "qcc") if threads > 1 else None

    def quantize(self, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """What ``quantize_input`` gives, faster."""
        return quantize_input(spec, array) if self._border is None else self._border.quantize(spec, array)

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output from codes of every input."""
        program = self.network.program
        outputs = {a.name: np.empty((batch, *a.shape[1:]) if a.batched else a.shape, a.dtype) for a in program.outputs}
        starts = range(0, batch, program.batch)
        if self._pool is None or len(starts) == 1 or (self.network.shared and len(starts) < self._threads):
            for start in starts:
                self.network.call(inputs, outputs, start, batch)
        else:
            list(self._pool.map(lambda start: self.network.call(inputs, outputs, start, batch, alone=True), starts))
        return outputs


def _never(inputs: Mapping[str, Any], raw: bool) -> None:
    """Leaves every call to the general way."""


def _file(files: Mapping[str, Path], name: str) -> Path:
    path = files.get(f"{FOLDER}/{name}")
    if path is None:
        raise ArtifactError(f"the artifact holds no {FOLDER}/{name}")
    return path
