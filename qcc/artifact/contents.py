"""The graph inside an artifact: its text, its constants, and the specs of its border."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.numpy

from qcc.artifact.manifest import Grid, TensorSpec
from qcc.errors import ArtifactError, QccError, VerifyError
from qcc.ir.graph import Graph, Value
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import Const
from qcc.ir.verify import verify

GRAPH: Final = "graph.qir"
WEIGHTS: Final = "weights.safetensors"


def graph_files(graph: Graph) -> dict[str, bytes]:
    """``graph`` as files: its text, and the constants that the text names, by digest."""
    store = const_store(graph)
    arrays = {digest: store[digest].array for digest in sorted(store)}
    return {GRAPH: render(graph).encode(), WEIGHTS: safetensors.numpy.save(arrays)}


def read_graph(files: Mapping[str, Path]) -> Graph:
    """The integer graph among the files of a checked artifact. Raises ArtifactError."""
    try:
        arrays = safetensors.numpy.load_file(files[WEIGHTS])
        store = {digest: Const(array) for digest, array in arrays.items()}
        graph = parse(files[GRAPH].read_text(encoding="utf-8"), store)
        verify(graph)
    except KeyError as e:
        raise ArtifactError(f"the artifact holds no {e.args[0]}") from None
    except (QccError, safetensors.SafetensorError, UnicodeDecodeError, OSError) as e:
        raise ArtifactError(f"the artifact's graph cannot be read: {e}") from e
    return graph


def tensor_spec(value: Value) -> TensorSpec:
    """The border of a graph input or output at stage INTEGER. Raises VerifyError for per-channel grids."""
    quant = value.type.quant
    if quant is not None and quant.axis is not None:
        raise VerifyError(f"%{value.name}: an input or output cannot have per-channel scales")
    grid = None
    if quant is not None:
        (scale,) = quant.scale
        grid = Grid(bits=quant.bits, mult=scale.mult, shift=scale.shift, zero_point=quant.zero_point)
    fields = {
        "name": value.name,
        "shape": tuple(None if d < 0 else d for d in value.type.shape),
        "dtype": value.type.numpy.name,
        "quant": grid,
        "real": "float32" if grid else None,
    }
    return TensorSpec.model_validate(fields)
