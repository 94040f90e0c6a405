"""A network as HLS C++: one function per stage, all running at once, with a program around it for plain C++."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qcc.errors import TargetError
from qcc.ir.types import DTYPES
from qcc_targets.c.emit import helper_definitions
from qcc_targets.c.source import identifier
from qcc_targets.fpga.buffers import fork_pixels
from qcc_targets.fpga.folding import Folding, input_lanes, output_lanes
from qcc_targets.fpga.hls_stage import Wiring, concat_function, nest_function, port, word
from qcc_targets.fpga.nests import build_nest
from qcc_targets.fpga.stages import Concat, Dataflow, Port, Stream
from qcc_targets.fpga.tools import CXX, Limits, Tool, run_tool

SUPPORT: Final = "qcc_hls.h"
SOURCE: Final = "network.cpp"
BENCH: Final = "testbench.cpp"

_PROGRAM: Final = "network"
_COMPILE: Final = Limits(seconds=1200)
_RUN: Final = Limits(seconds=3600)

_STRICT: Final = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
"""Flags under which the code compiles without a warning; only HLS tools know the pragmas."""


@dataclass(frozen=True, slots=True)
class _Edge:
    """A stream between a writer and one reader."""

    stream: Stream
    lanes: int
    variable: str
    depth: int


def hls_sources(network: Dataflow, foldings: Mapping[str, Folding]) -> dict[str, str]:
    """The files by name. Raises TargetError."""
    return _Writer(network, foldings).files()


class _Writer:
    def __init__(self, network: Dataflow, foldings: Mapping[str, Folding]) -> None:
        self._network, self._foldings = network, foldings
        self._readers = network.readers()
        self._helpers: set[str] = set()
        self._lanes = {s.name: output_lanes(s, foldings[s.name]) for s in network.stages}
        for p in network.inputs:
            number, slot = self._readers[p.stream.name][0]
            taken = 1
            if number < len(network.stages):
                stage = network.stages[number]
                taken = input_lanes(stage, foldings[stage.name], slot)
            self._lanes[p.stream.name] = taken

    def files(self) -> dict[str, str]:
        functions = [self._stage(number) for number in range(len(self._network.stages))]
        forks = [self._fork(p) for p in self._network.inputs if len(self._readers[p.stream.name]) > 1]
        parts = [
            f"/* The integer network {self._network.name} as a streaming dataflow; types are in {SUPPORT}. */",
            f'#include "{SUPPORT}"',
            *helper_definitions(sorted(self._helpers)),
            *forks,
            *functions,
            self._top(),
        ]
        support = (files("qcc_targets.fpga") / "support" / SUPPORT).read_text()
        return {SUPPORT: support, SOURCE: "\n\n".join(parts) + "\n", BENCH: self._bench()}

    @property
    def _name(self) -> str:
        return identifier(self._network.name)

    def _stage(self, number: int) -> str:
        stage = self._network.stages[number]
        wiring = Wiring(
            tuple(self._lanes[s.name] for s in stage.inputs),
            self._lanes[stage.name],
            len(self._readers.get(stage.name, [])),
        )
        if isinstance(stage, Concat):
            return concat_function(stage, wiring, f"stage_{number}")
        return nest_function(build_nest(stage, self._foldings[stage.name]), wiring, f"stage_{number}", self._helpers)

    def _edges(self, stream: Stream) -> list[_Edge]:
        """One per reader; the network's outputs are edges of their own."""
        lanes, readers = self._lanes[stream.name], self._readers.get(stream.name, [])
        pixels = fork_pixels(self._network, stream.name) if len(readers) > 1 else {}
        found = []
        for number, slot in readers:
            variable = f"s_{number}_{slot}" if number < len(self._network.stages) else f"out{slot}"
            depth = -(-pixels.get((number, slot), 0) * stream.channels // lanes)
            found.append(_Edge(stream, lanes, variable, max(depth, 2)))
        return found

    def _ports(self) -> list[str]:
        ins = [port(p.stream, self._lanes[p.stream.name], f"in{i}") for i, p in enumerate(self._network.inputs)]
        outs = [port(p.stream, self._lanes[p.stream.name], f"out{i}") for i, p in enumerate(self._network.outputs)]
        return [*ins, *outs]

    def _fork(self, p: Port) -> str:
        lanes, edges = self._lanes[p.stream.name], self._edges(p.stream)
        outs = ", ".join(port(p.stream, lanes, f"y{k}") for k in range(len(edges)))
        writes = " ".join(f"y{k}.write(element);" for k in range(len(edges)))
        return (
            f"static void fork_{identifier(p.stream.name)}({port(p.stream, lanes, 'x')}, {outs})\n{{\n"
            f"    for (int i = 0; i < {p.stream.size // lanes}; ++i) {{\n#pragma HLS PIPELINE II=1\n"
            f"        const {word(p.stream, lanes)} element = x.read();\n        {writes}\n    }}\n}}"
        )

    def _top(self) -> str:
        names = [*(f"in{i}" for i in range(len(self._network.inputs)))]
        names += [f"out{i}" for i in range(len(self._network.outputs))]
        lines = [f"/* One frame. */\nvoid {self._name}({', '.join(self._ports())})", "{"]
        lines += [f"#pragma HLS INTERFACE mode=axis port={n}" for n in names]
        lines += ["#pragma HLS DATAFLOW"]
        calls, direct = [], {}
        for i, p in enumerate(self._network.inputs):
            edges = self._edges(p.stream)
            if len(edges) == 1 and not edges[0].variable.startswith("out"):
                direct[edges[0].variable] = f"in{i}"
            else:
                lines += self._declared(edges)
                arguments = ", ".join([f"in{i}", *(e.variable for e in edges)])
                calls.append(f"    fork_{identifier(p.stream.name)}({arguments});")
        for number, stage in enumerate(self._network.stages):
            edges = self._edges(stage.output)
            lines += self._declared(edges)
            ins = [direct.get(f"s_{number}_{slot}", f"s_{number}_{slot}") for slot in range(len(stage.inputs))]
            calls.append(f"    stage_{number}({', '.join([*ins, *(e.variable for e in edges)])});")
        return "\n".join([*lines, *calls, "}"])

    def _declared(self, edges: Sequence[_Edge]) -> list[str]:
        lines = []
        for e in edges:
            if not e.variable.startswith("out"):
                lines.append(f'    qcc_stream<{word(e.stream, e.lanes)}> {e.variable}("{e.variable}");')
                lines.append(f"#pragma HLS STREAM variable={e.variable} depth={e.depth}")
        return lines

    def _bench(self) -> str:
        """Reads frames from standard input in the order of transit, writes results; runs the network frame by frame."""
        lines = [
            "/* Maps frames on standard input to frames on standard output, both in the order of transit. */",
            f'#include "{SUPPORT}"',
            "",
            f"void {self._name}({', '.join(self._ports())});",
            "",
            "int main()",
            "{",
        ]
        ports = [*(("in", i, p) for i, p in enumerate(self._network.inputs))]
        ports += [("out", i, p) for i, p in enumerate(self._network.outputs)]
        for side, i, p in ports:
            lines.append(f"    static {DTYPES[p.dtype].name}_t {side}{i}_codes[{p.stream.size}];")
        reads = [f"fread(in{i}_codes, sizeof in{i}_codes, 1, stdin) == 1" for i in range(len(self._network.inputs))]
        lines.append(f"    while ({' && '.join(reads)}) {{")
        for side, i, p in ports:
            lines.append(f'        qcc_stream<{word(p.stream, self._lanes[p.stream.name])}> {side}{i}("{side}{i}");')
        for i, p in enumerate(self._network.inputs):
            lanes = self._lanes[p.stream.name]
            lines += [
                f"        for (int i = 0; i < {p.stream.size}; i += {lanes}) {{",
                f"            {word(p.stream, lanes)} element;",
                f"            for (int k = 0; k < {lanes}; ++k) element.lane[k] = in{i}_codes[i + k];",
                f"            in{i}.write(element);",
                "        }",
            ]
        names = [f"{side}{i}" for side, i, _ in ports]
        lines.append(f"        {self._name}({', '.join(names)});")
        for i, p in enumerate(self._network.outputs):
            lanes = self._lanes[p.stream.name]
            lines += [
                f"        for (int i = 0; i < {p.stream.size}; i += {lanes}) {{",
                f"            const {word(p.stream, lanes)} element = out{i}.read();",
                f"            for (int k = 0; k < {lanes}; ++k) out{i}_codes[i + k] = element.lane[k];",
                "        }",
                f"        if (fwrite(out{i}_codes, sizeof out{i}_codes, 1, stdout) != 1) return 1;",
            ]
        return "\n".join([*lines, "    }", "    return 0;", "}", ""])


class Frame(NamedTuple):
    """How a port's frames lie in memory: element i in the order of transit is element ``order[i]`` of the array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: NDArray[Any]

    @classmethod
    def of(cls, port: Port) -> Frame:
        return cls(port.shape, DTYPES[port.dtype], port.order)


class HlsProgram:
    """The C++ of a network, compiled by g++ at ``level`` in ``folder``, where its files lie. Raises TargetError."""

    def __init__(
        self,
        inputs: Sequence[Frame],
        outputs: Sequence[Frame],
        folder: Path,
        level: str = "-O2",
        limits: Limits = _COMPILE,
    ) -> None:
        self._inputs, self._outputs, self._folder = inputs, outputs, folder
        run_tool(CXX, [*_STRICT, level, "-o", _PROGRAM, SOURCE, BENCH], folder, limits)

    def run(self, inputs: Sequence[NDArray[Any]], limits: Limits = _RUN) -> list[NDArray[Any]]:
        """Codes of every output, [batch, …], from those of every input, in order. Raises TargetError."""
        batch = len(inputs[0])
        frames = [
            np.asarray(x, f.dtype).reshape(batch, -1)[:, f.order] for x, f in zip(inputs, self._inputs, strict=True)
        ]
        data = b"".join(frame[n].tobytes() for n in range(batch) for frame in frames)
        program = Tool("the network's C++", "runs", "", lambda: (str(self._folder / _PROGRAM),))
        return _unpacked(self._outputs, run_tool(program, [], self._folder, limits, stdin=data), batch)


def _unpacked(ports: Sequence[Frame], data: bytes, batch: int) -> list[NDArray[Any]]:
    """The arrays [batch, …] of frames in the order of transit, one port after the other in each frame."""
    size = sum(f.dtype.itemsize * f.order.size for f in ports)
    if len(data) != batch * size:
        raise TargetError(f"{len(data)} bytes of results where {batch} frames have {batch * size}")
    frames = np.frombuffer(data, np.uint8).reshape(batch, size)
    found, start = [], 0
    for f in ports:
        stop = start + f.dtype.itemsize * f.order.size
        codes = np.ascontiguousarray(frames[:, start:stop]).view(f.dtype)
        dense = np.empty_like(codes)
        dense[:, f.order] = codes
        found.append(dense.reshape(batch, *f.shape))
        start = stop
    return found
