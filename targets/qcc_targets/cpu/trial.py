"""Compile an integer graph and run it at once, for tests, fuzzing and tuning."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc.runtime.levels import choose
from qcc.runtime.tvm_network import Network
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.isa import Isa, resolve
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.target import describe, describe_level, write_library


def compile_and_run(
    graph: Graph,
    inputs: Mapping[str, NDArray[Any]],
    isa: str | Isa = "native",
    batch: int = 1,
    compiler: Compiler | None = None,
) -> dict[str, NDArray[Any]]:
    """The outputs of an integer graph, by the compiled library; codes in, codes out.

    ``compiler`` may be shared by many calls, which then load TVM only once. Raises TargetError.
    """
    return run(compile_graph(graph, isa, batch, compiler), inputs)


def compile_graph(
    graph: Graph, isa: str | Isa = "native", batch: int = 1, compiler: Compiler | None = None, threads: int = 1
) -> Network:
    """The loaded library of an integer graph, whose calls ``threads`` threads share. Raises TargetError."""
    level = resolve(isa) if isinstance(isa, str) else isa
    network = assemble(lower(graph, batch), level, threads)
    with tempfile.TemporaryDirectory(prefix="qcc-") as folder:
        path = Path(folder) / "network.so"
        write_library(network, level, compiler or Compiler(), path)
        found = describe_level(network, level)
        program = describe(graph, [found], level.machine, batch, threads)
        return Network(program, choose(program), path, np.frombuffer(network.constants, np.uint8), threads)


def run(network: Network, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs of ``network`` on codes, for any batch."""
    program = network.program
    sizes = [len(inputs[a.name]) for a in program.inputs if a.batched]
    batch = sizes[0] if sizes else program.batch
    arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    outputs = {a.name: np.empty((batch, *a.shape[1:]) if a.batched else a.shape, a.dtype) for a in program.outputs}
    for start in range(0, batch, program.batch):
        network.call(arrays, outputs, start, batch)
    return outputs
