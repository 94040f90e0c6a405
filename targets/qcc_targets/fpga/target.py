"""The target ``fpga``, and the backend that simulates what it builds."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from qcc.artifact.manifest import Manifest
from qcc.errors import ArtifactError
from qcc.ir.graph import Graph, Op
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import NARROW_BITS, Capabilities, Program, Target
from qcc_targets.c.source import identifier
from qcc_targets.fpga.bits import layer_costs
from qcc_targets.fpga.dataflow import OPERATIONS, streaming
from qcc_targets.fpga.description import Description, Words
from qcc_targets.fpga.device import Device, load_device, shipped
from qcc_targets.fpga.hls import Frame, HlsProgram, hls_sources
from qcc_targets.fpga.rtl.products import Ports
from qcc_targets.fpga.search import find_foldings
from qcc_targets.fpga.simulation import Pauses, Simulation
from qcc_targets.fpga.tools import programs
from qcc_targets.fpga.write import DESCRIPTION, write_files

HLS: Final = "hls"
"""The folder of the C++ in an artifact."""


class FpgaTarget(Target):
    """Streaming hardware in SystemVerilog, and HLS C++: every layer a stage of its own, all of them at work at once.

    Layers get the multipliers that make the network as fast as ``part`` holds at ``clock_mhz`` (by default what its
    file says). With ``fps``, frames a second, or ``cycles``, the most between frames, they get as few as suffice.
    ``part`` is a device that ships or the file of one (``qcc schema fpga-device``). ``run`` says what runs the artifact
    here: the hardware, simulated by Verilator, or the C++. ``prefix`` begins the name of the top module.
    """

    name: ClassVar[str] = "fpga"
    backend: ClassVar[str] = "fpga"

    part: str = Field(default="xczu3eg", description=f"{', '.join(shipped())}, or a file")
    clock_mhz: float | None = Field(default=None, gt=0, le=1000)
    fps: float | None = Field(default=None, gt=0)
    cycles: int | None = Field(default=None, ge=1)
    run: Literal["rtl", "hls"] = "rtl"
    prefix: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")

    @model_validator(mode="after")
    def _one_aim(self) -> FpgaTarget:
        if self.fps is not None and self.cycles is not None:
            raise ValueError("fps and cycles both say how fast the network is to be: give one of them")
        return self

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ops=OPERATIONS, weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def layer_costs(self, o: Op, weight_bits: int, activation_bits: int) -> Mapping[str, float]:
        """LUTs, flip-flops, DSP slices and blocks of memory, where ``fps`` or ``cycles`` say how fast it is to be."""
        device = load_device(self.part)
        most = self._most_cycles(device)
        return {} if most is None else layer_costs(o, weight_bits, activation_bits, device, most)

    def _most_cycles(self, device: Device) -> int | None:
        if self.fps is None:
            return self.cycles
        return math.floor((self.clock_mhz or device.clock_mhz) * 1e6 / self.fps)

    def programs(self) -> Sequence[Program]:
        return programs()

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        device = load_device(self.part)
        clock_mhz = self.clock_mhz or device.clock_mhz
        network = streaming(graph)
        found = find_foldings(network, device, self._most_cycles(device))
        ctx.log.info("%s: a frame every %d cycles on %s", self.name, found.allocation.cycles, device.name)
        top = f"{self.prefix or identifier(graph.name)}_top"
        written = write_files(network, found.foldings, top, clock_mhz, self.run, Ports.of(device))
        written |= {f"{HLS}/{name}": text.encode() for name, text in hls_sources(network, found.foldings).items()}
        for name, data in written.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(data)
        return [out / name for name in written]


class FpgaBackend:
    """Runs the network: its hardware in simulation, with random pauses of source and sink, or its C++.

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
        if Description.from_bytes(own[DESCRIPTION]).run == "hls":
            self._run: _Run = _Cpp(own).run
        else:
            simulation, pauses = Simulation(own), Pauses(source, sink, seed)
            self._run = lambda inputs: simulation.run(inputs, pauses).outputs
        # Runs share the files in one folder.
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output, [batch, …]."""
        with self._lock:
            return dict(self._run({k: np.asarray(a) for k, a in inputs.items()}))


_Run = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]


class _Cpp:
    """The artifact's C++ in a temporary folder that goes away with this object."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._spec = Description.from_bytes(files[DESCRIPTION])
        folder = Path(tempfile.mkdtemp(prefix="qcc-hls-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for name, data in files.items():
            if name.startswith(f"{HLS}/"):
                (folder / name.removeprefix(f"{HLS}/")).write_bytes(data)
        ins, outs = ([Frame(w.shape, np.dtype(w.dtype), np.array(w.order)) for w in ws] for ws in self._ports())
        self._program = HlsProgram(ins, outs, folder)

    def _ports(self) -> tuple[Sequence[Words], Sequence[Words]]:
        return self._spec.inputs, self._spec.outputs

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        codes = self._program.run([inputs[w.name] for w in self._spec.inputs])
        return {w.name: array for w, array in zip(self._spec.outputs, codes, strict=True)}
