"""Reading a graph from whatever a user names: text, an ONNX model, an artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qcc.errors import ConfigError

if TYPE_CHECKING:
    from qcc.ir.graph import Graph


def read_graph_of(source: str) -> Graph:
    """The verified graph in ``source``: an .onnx model, an artifact, else graph text; ``-`` is text on stdin.

    Raises ConfigError, ModelError, ArtifactError, ParseError, VerifyError.
    """
    from qcc.ir.text import parse
    from qcc.ir.verify import verify

    path = Path(source)
    if source == "-":
        graph = parse(sys.stdin.read())
    elif path.suffix == ".onnx":
        from qcc.frontend.load import load_model

        graph = load_model(path).graph
    elif is_artifact(path):
        from qcc.artifact.contents import read_graph
        from qcc.artifact.store import read_artifact

        graph = read_graph(read_artifact(path).files)
    else:
        try:
            graph = parse(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"{source}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    verify(graph)
    return graph


def is_artifact(path: Path) -> bool:
    """Whether ``path`` looks like an artifact rather than text or a model."""
    return path.is_dir() or path.suffix == ".qcc"
