"""The target ``fpga``, and the backend that simulates what it builds."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.artifact.manifest import Manifest
from qcc.errors import ArtifactError
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import NARROW_BITS, Capabilities, Target
from qcc_targets.c.source import identifier
from qcc_targets.fpga.dataflow import OPERATIONS, streaming
from qcc_targets.fpga.folding import target_cycles
from qcc_targets.fpga.simulation import Pauses, Simulation
from qcc_targets.fpga.write import DESCRIPTION, write_files


class FpgaTarget(Target):
    """Streaming hardware in SystemVerilog: every layer a stage of its own, all of them at work at once.

    Stages get as few multipliers as let them take a frame in ``cycles``. ``clock_mhz`` is what the
    constraints ask for. ``prefix`` begins the name of the top module.
    """

    name: ClassVar[str] = "fpga"
    backend: ClassVar[str] = "fpga"

    cycles: int = Field(default=20000, ge=1)
    clock_mhz: float = Field(default=200, gt=0, le=1000)
    prefix: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ops=OPERATIONS, weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        network = streaming(graph)
        top = f"{self.prefix or identifier(graph.name)}_top"
        written = write_files(network, target_cycles(network, self.cycles), top, self.clock_mhz)
        for name, data in written.items():
            (out / name).write_bytes(data)
        return [out / name for name in written]


class FpgaBackend:
    """Runs the network in simulation, with random pauses of source and sink.

    ``source`` and ``sink`` are the percentage of cycles in which words are offered and taken.
    """

    def __init__(
        self,
        manifest: Manifest,
        files: Mapping[str, Path],
        threads: int,
        source: int = 70,
        sink: int = 70,
        seed: int = 1,
    ) -> None:
        own = {n.removeprefix("device/"): p.read_bytes() for n, p in files.items() if n.startswith("device/")}
        if DESCRIPTION not in own:
            raise ArtifactError(f"the artifact holds no device/{DESCRIPTION}")
        self._simulation = Simulation(own)
        self._pauses = Pauses(source, sink, seed)
        # Runs share the files in the simulation's folder.
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output, [batch, …]."""
        with self._lock:
            return dict(self._simulation.run({k: np.asarray(a) for k, a in inputs.items()}, self._pauses).outputs)
