"""A small integer graph, and an artifact of it for the reference target."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcc.artifact.contents import graph_files, tensor_spec
from qcc.artifact.manifest import Manifest, PluginSpec
from qcc.artifact.store import write_artifact
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant

WriteSmall = Callable[..., Manifest]


@pytest.fixture
def integer_graph() -> Graph:
    """X u8 [N, 4] (scale 1/8, zero point 3) → dense → y i32 [N, 20] (scale 1/16)."""
    b = GraphBuilder("small", Stage.INTEGER)
    x = b.input("x", (BATCH, 4), "u8", Quant(8, False, (Dyadic(1, 3),), 3))
    weights = (np.arange(80).reshape(20, 4) * 7 % 31 - 15).astype(np.int8)
    w = b.constant(weights, "w")
    m = b.constant(np.full(20, 1 << 20, np.int32), "m")
    c = b.constant(np.arange(20, dtype=np.int64) << 18, "c")
    grid = Quant(32, True, (Dyadic(1, 4),))
    y = b.op("idense", (x, w, m, c), name="y", quant=grid, shift=20, qmin=-(1 << 31), qmax=(1 << 31) - 1)
    return b.graph([y])


@pytest.fixture
def write_small(integer_graph: Graph) -> WriteSmall:
    """Writes an artifact of ``integer_graph`` to a path; keywords change fields of its manifest."""

    def write(path: Path, *, force: bool = False, **changes: object) -> Manifest:
        manifest = Manifest(
            qcc_version="0",
            model="small",
            source_sha256="0" * 64,
            target=PluginSpec(name="ref"),
            backend="ref",
            pipeline=("canonicalize",),
            inputs=tuple(map(tensor_spec, integer_graph.inputs)),
            outputs=tuple(map(tensor_spec, integer_graph.outputs)),
        ).model_copy(update=changes)
        return write_artifact(path, manifest, graph_files(integer_graph), force=force)

    return write
