"""Building and running the simulation of a network that was written into a folder."""

from __future__ import annotations

import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ArtifactError
from qcc_targets.fpga.description import Description, Words
from qcc_targets.fpga.tools import VERILATOR, Limits, Tool, run_tool
from qcc_targets.fpga.words import pack_words, unpack_words

Array = NDArray[Any]

BUILD: Final = Limits(seconds=1200, memory=8 << 30)
_FLAGS: Final = (
    *("--cc", "--exe", "--build", "-j", "2", "-O3", "--threads", "1", "--output-split", "15000"),
    # Registers begin with random bits, so that what a reset leaves out shows.
    *("--x-assign", "unique", "--x-initial", "unique", "-Wno-WIDTH", "-DQCC_SIMULATION"),
    *("--Mdir", "built", "--prefix", "Vtop", "-MAKEFLAGS", "OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"),
)


@dataclass(frozen=True, slots=True)
class Pauses:
    """The percentage of cycles in which the source offers words and the sink takes them, drawn from ``seed``."""

    source: int = 100
    sink: int = 100
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """``outputs`` [frames, …] by name; the cycle in which each frame left; what each queue held at most, of what."""

    outputs: Mapping[str, Array]
    ends: tuple[int, ...]
    queues: Mapping[str, tuple[int, int]]

    @property
    def interval(self) -> float | None:
        """Cycles between frames, once the first has left; None for fewer than three."""
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1) if len(self.ends) > 2 else None


class Simulation:
    """A network as a program. Building it takes a temporary folder that goes away with this object."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """``files`` by name, as the target writes them. Raises TargetError where a tool is missing or fails."""
        self._folder = Path(tempfile.mkdtemp(prefix="qcc-simulation-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        for name, data in files.items():
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self.description = Description.from_bytes(files["network.json"])
        sources = self.description.sources
        arguments = [
            *_FLAGS,
            "--top-module",
            self.description.top,
            *sources,
            self.description.testbench,
            "-o",
            "simulate",
        ]
        run_tool(VERILATOR, arguments, self._folder, BUILD)

    def run(self, inputs: Mapping[str, Array], pauses: Pauses = Pauses(), *, seconds: int = 3600) -> Run:
        """``inputs`` [frames, …] by name through the network. Raises TargetError where it fails or hangs."""
        spec = self.description
        frames = len(inputs[spec.inputs[0].name])
        for i, port in enumerate(spec.inputs):
            ordered = inputs[port.name].reshape(frames, -1)[:, np.array(port.order)]
            (self._folder / f"in{i}.bin").write_bytes(pack_words(ordered, port.bits, port.lanes))
        program = Tool("simulation", "runs the hardware", "", lambda: (str(self._folder / "built" / "simulate"),))
        # Longer than any stage takes for a frame, even at the slowest source or sink.
        patience = 1000 + 40 * spec.cycles * 100 // min(pauses.source, pauses.sink)
        arguments = [str(n) for n in (frames, pauses.seed, pauses.source, pauses.sink, patience)]
        text = run_tool(program, arguments, self._folder, Limits(seconds=seconds)).decode()
        outputs = {port.name: self._output(i, port, frames) for i, port in enumerate(spec.outputs)}
        last = len(spec.outputs) - 1
        ends = [int(c) for _, o, c in re.findall(r"frame (\d+) output (\d+) cycle (\d+)", text) if int(o) == last]
        queues = {n: (int(h), int(w)) for n, h, w in re.findall(r"queue \S*\.(\w+) held (\d+) of (\d+)", text)}
        return Run(outputs, tuple(ends), queues)

    def _output(self, number: int, port: Words, frames: int) -> Array:
        path = self._folder / f"out{number}.bin"
        if not path.is_file():
            raise ArtifactError(f"the simulation wrote no {path.name}")
        codes = unpack_words(path.read_bytes(), port.bits, port.lanes, port.signed).reshape(frames, -1)
        out = np.empty_like(codes)
        out[:, np.array(port.order)] = codes
        return out.reshape(frames, *port.shape).astype(port.dtype)
