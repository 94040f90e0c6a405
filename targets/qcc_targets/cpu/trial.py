"""Compile and run graphs at once, for tests and fuzzing: many small graphs share one library."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc.runtime.tvm_backend import Network
from qcc_targets.cpu.compiler import Limits
from qcc_targets.cpu.isa import Isa, resolve
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.target import describe, write_library


def compile_and_run(
    graph: Graph, inputs: Mapping[str, NDArray[Any]], isa: str | Isa = "native", batch: int = 1
) -> dict[str, NDArray[Any]]:
    """The outputs of an integer graph, by the compiled library; codes in, codes out. Raises TargetError."""
    level = resolve(isa) if isinstance(isa, str) else isa
    network = assemble(lower(graph, batch), level)
    with tempfile.TemporaryDirectory(prefix="qcc-") as folder:
        path = Path(folder) / "network.so"
        write_library(network, level, Limits(), path)
        program = describe(graph, network, level, batch)
        loaded = Network(program, path, np.frombuffer(network.constants, np.uint8))
        return run(loaded, inputs)


def run(network: Network, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    program = network.program
    sizes = [len(inputs[a.name]) for a in program.inputs if a.batched]
    batch = sizes[0] if sizes else program.batch
    arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    outputs = {a.name: np.empty((batch, *a.shape[1:]) if a.batched else a.shape, a.dtype) for a in program.outputs}
    for start in range(0, batch, program.batch):
        network.call(arrays, outputs, start, batch)
    return outputs
