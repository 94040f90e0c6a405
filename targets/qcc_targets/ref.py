"""The reference as a target: artifacts that the numpy executor runs, on any machine, slowly and exactly."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from qcc.artifact.contents import read_graph
from qcc.artifact.manifest import Manifest
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import NARROW_BITS, Capabilities, Target
from qcc.verify.interp import evaluate


class RefTarget(Target):
    """The numpy reference executor: every operation, no device code."""

    name: ClassVar[str] = "ref"
    backend: ClassVar[str] = "ref"

    @property
    def capabilities(self) -> Capabilities:
        """Everything that the opset holds."""
        return Capabilities(weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        """Nothing: the artifact's own graph is what runs."""
        return ()


class RefBackend:
    """Evaluates the artifact's graph; stateless, so any number of threads may call it."""

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int) -> None:
        self._graph = read_graph(files)

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output, [batch, …]."""
        return evaluate(self._graph, inputs)
