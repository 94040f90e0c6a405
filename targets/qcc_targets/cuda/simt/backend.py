"""The backends that run a CUDA artifact without a GPU: ``--device simt`` and ``--device simt-racecheck``."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest
from qcc.runtime.cuda_backend import reader, run_batches
from qcc.runtime.cuda_program import CUDA_PROGRAM, CudaProgram
from qcc_targets.cuda.simt.library import compile_library
from qcc_targets.cuda.simt.network import SimtNetwork


class SimtBackend:
    """Compiles the artifact's CUDA source for the host and runs its launches. Threads take turns."""

    alignment: Final = 1
    racecheck: ClassVar[bool] = False

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int, *, seed: int = 0) -> None:
        read = reader(files)
        self.program = CudaProgram.from_bytes(read(CUDA_PROGRAM))
        with tempfile.TemporaryDirectory(prefix="qcc-simt-") as scratch:
            library = Path(scratch) / "network.so"
            compile_library(read(self.program.source).decode(), library, racecheck=self.racecheck)
            self.network = SimtNetwork(self.program, read, library, racecheck=self.racecheck, seed=seed)
        self._turn = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output from codes of every input. Raises MismatchError where a kernel is wrong."""
        with self._turn:
            return run_batches(self.program, self.network.run, inputs, batch)


class RacecheckBackend(SimtBackend):
    """The same with every access to memory checked: slower, and an error where a barrier is missing."""

    racecheck: ClassVar[bool] = True
