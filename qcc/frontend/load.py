"""``load_model``: an ONNX file becomes a graph at stage FLOAT."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcc.errors import ModelError
from qcc.frontend.importer import Importer
from qcc.frontend.source import read_source
from qcc.frontend.tensors import TensorReader
from qcc.ir.graph import Graph


@dataclass(frozen=True, slots=True)
class Model:
    """``graph`` is at stage FLOAT; ``notes`` say what the import changed or assumed.

    ``digest`` is the sha256 of the model: of its file and of the external data that it uses.
    """

    graph: Graph
    notes: tuple[str, ...]
    digest: str


def load_model(path: Path, *, batch: int | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Model:
    """Import the ONNX model at ``path``: opset 9 to 26, IR version up to 13.

    A leading dynamic dimension becomes the symbolic batch, unless ``batch`` fixes it; ``shapes``
    gives the sizes of other dynamic dimensions per input (-1: as declared). float16, bfloat16 and
    float64 become float32. External data is read only from below the model's folder.

    Raises ModelError when the file or the model is malformed or unsafe, or a dimension stays
    unknown, and UnsupportedError, listing every such node, when it holds nodes that qcc has no
    counterpart for.
    """
    if batch is not None and batch < 1:
        raise ModelError(f"the batch size must be positive, got {batch}")
    source = read_source(path)
    reader = TensorReader(path.parent)
    importer = Importer(source, reader)
    graph = importer.run(path.stem, batch, shapes or {})
    digest = hashlib.sha256(bytes.fromhex(source.sha256) + reader.digest.digest())
    return Model(graph, tuple(importer.notes), digest.hexdigest())
