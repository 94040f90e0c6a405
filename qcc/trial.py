"""Running an integer graph on a target without writing an artifact that anyone keeps."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc import __version__
from qcc.artifact.contents import graph_files, tensor_spec
from qcc.artifact.manifest import Manifest, PluginSpec
from qcc.artifact.store import write_artifact
from qcc.device import build_device, check_device
from qcc.errors import MismatchError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import Target
from qcc.runtime import Session, load
from qcc.verify.fuzz import Engine
from qcc.verify.interp import evaluate


@contextmanager
def trial_session(graph: Graph, target: Target, threads: int = 1, device: int | str | None = None) -> Iterator[Session]:
    """A session of ``graph`` (stage INTEGER), built for ``target`` in a folder that goes away afterwards.

    ``device`` is as for ``load``.
    """
    with tempfile.TemporaryDirectory(prefix="qcc-trial-") as scratch:
        path = Path(scratch) / "artifact"
        write_trial(graph, target, path)
        yield load(path, threads, device=device)


def write_trial(graph: Graph, target: Target, path: Path) -> None:
    """Write the artifact of ``graph`` (stage INTEGER) for ``target``, which names no model that it comes from."""
    ctx = PassContext(capabilities=target.capabilities)
    legal = Pipeline(tuple(target.passes())).run(graph, ctx)
    check_device(legal, target)
    manifest = Manifest(
        qcc_version=__version__,
        model=graph.name,
        source_sha256="0" * 64,
        target=PluginSpec(name=target.name),
        backend=target.backend,
        pipeline=(),
        inputs=tuple(map(tensor_spec, legal.inputs)),
        outputs=tuple(map(tensor_spec, legal.outputs)),
    )
    write_artifact(path, manifest, {**graph_files(legal), **build_device(target, legal, ctx)})


def try_target(target: Target, device: int | str | None = None) -> None:
    """Compile a small dense layer for ``target`` and run it here, on ``device``.

    Raises a QccError where either fails, MismatchError where the answer is wrong.
    """
    graph = small_graph()
    x = np.arange(64, dtype=np.uint8).reshape(4, 16)
    with trial_session(graph, target, device=device) as session:
        got = session.run({"x": x}, raw=True)["y"]
    if not np.array_equal(got, evaluate(graph, {"x": x})["y"]):
        raise MismatchError(f"target '{target.name}' computes a small dense layer wrongly")


def small_graph() -> Graph:
    """A dense layer of a batch of 16 codes, u8 [N, 16] to u8 [N, 8]."""
    b = GraphBuilder("trial", Stage.INTEGER)
    x = b.input("x", (BATCH, 16), "u8", Quant(8, False, (Dyadic(1, 0),), 0))
    w = b.constant((np.arange(128).reshape(8, 16) % 13 - 6).astype(np.int8), "w")
    m = b.constant(np.full(8, 1 << 28, np.int32), "m")
    c = b.constant(np.full(8, (128 << 32) + (1 << 31), np.int64), "c")
    grid = Quant(8, False, (Dyadic(1, 0),), 128)
    return b.graph([b.op("idense", (x, w, m, c), name="y", quant=grid, shift=32, qmin=0, qmax=255)])


def target_engine(target: Target, device: int | str | None = None) -> Engine:
    """An engine for fuzzing: compiles the graph for ``target``, and runs it once, on whatever codes there are."""

    def run(graph: Graph, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        with trial_session(graph, target, device=device) as session:
            batch = next((len(inputs[s.name]) for s in session.inputs if s.batched), 1)
            return session.run_codes(inputs, batch)

    return run
