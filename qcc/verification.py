"""Verifying an artifact on a user's data: finds the model, and feeds every execution what it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

from qcc.artifact.border import dequantize_output, quantize_input
from qcc.artifact.contents import read_graph
from qcc.artifact.manifest import TensorSpec
from qcc.artifact.store import Artifact, read_artifact
from qcc.config import CompileConfig, DataConfig, InputConfig, make_config
from qcc.data import load_data
from qcc.errors import ArtifactError, ConfigError
from qcc.frontend.load import Model, load_model
from qcc.frontend.naming import legal
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext, Progress
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.passmgr.spelling import parse_pipeline
from qcc.runtime import Session
from qcc.verify.ort import OrtModel
from qcc.verify.report import Runner, VerifyReport, verify_model

Arrays = Mapping[str, NDArray[Any]]
CONFIG: Final = "config.yaml"
INTEGER_ONNX: Final = "model.int.onnx"


@dataclass(frozen=True, slots=True)
class Verification:
    report: VerifyReport
    notes: tuple[str, ...]


def verify_artifact(
    path: Path,
    data: DataConfig,
    *,
    model: Path | None = None,
    layers: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
) -> Verification:
    """Compare the fp32 model, the reference, onnxruntime on the integer graph, and the artifact on ``data``.

    Arrays of the element type of the artifact's codes are codes, others are reals. ``model`` is by
    default looked for beside the artifact and in the working directory; it must be the one that
    the artifact was compiled from. ``layers`` adds the table of layers.
    Raises ArtifactError, ConfigError, ModelError; differences are reported, not raised.
    """
    artifact = read_artifact(path)
    config = _config(artifact)
    source = model if model is not None else _find_model(artifact, config)
    imported = _import(source, config, artifact)
    session = Session(artifact, threads)
    graph = read_graph(artifact.files)
    shapes = {v.name: v.type.shape for v in graph.inputs}
    loaded = load_data(data, shapes, raw_bytes=all(s.takes_bytes for s in session.inputs))
    CalibrationData(loaded.arrays, loaded.labels).check(graph)
    coded = any(loaded.arrays[s.name].dtype == s.numpy for s in session.inputs)
    reals = {s.name: _real(s, loaded.arrays[s.name], config.input, imported.graph) for s in session.inputs}
    report = verify_model(
        _by_legal_names(OrtModel(source, threads=threads)),
        graph,
        reals,
        engines=_engines(artifact, session, threads),
        codes={s.name: quantize_input(s, loaded.arrays[s.name]) for s in session.inputs} if coded else None,
        labels=loaded.labels,
        real=_real_graph(imported.graph, artifact) if layers else None,
        progress=progress,
    )
    return Verification(report, (*imported.notes, *loaded.notes))


def _config(artifact: Artifact) -> CompileConfig:
    """The configuration that the artifact was compiled with."""
    try:
        fields = yaml.safe_load(artifact.read(CONFIG))
        return make_config({**fields, "output": artifact.path}, CONFIG)
    except (yaml.YAMLError, TypeError, ConfigError) as e:
        raise ArtifactError(f"{artifact.path}: {e}") from e


def _find_model(artifact: Artifact, config: CompileConfig) -> Path:
    for folder in (artifact.path.parent, Path()):
        if (path := folder / config.model.name).is_file():
            return path
    raise ConfigError(f"{config.model.name} is not beside {artifact.path}: pass --model")


def _import(source: Path, config: CompileConfig, artifact: Artifact) -> Model:
    model = load_model(source, batch=config.batch, shapes=config.shapes)
    if model.digest != artifact.manifest.source_sha256:
        raise ConfigError(f"{source} is not the model that {artifact.path} was compiled from: its sha256 differs")
    return model


def _real(spec: TensorSpec, array: NDArray[Any], config: InputConfig, model: Graph) -> NDArray[Any]:
    """What the model takes, from what the artifact takes."""
    real = dequantize_output(spec, array) if array.dtype == spec.numpy else array.astype(np.float32)
    if config.mode == "float":
        return real
    wanted = next(v.type.shape for v in model.inputs if v.name == spec.name)
    return normalized_bytes(real, config, wanted)


def normalized_bytes(array: NDArray[Any], config: InputConfig, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Bytes [N, …] as the model's input of ``shape``: (byte * scale - mean) / std, transposed where layouts differ."""
    channels = 3 if config.layout == "NHWC" else 1
    moved = np.moveaxis(array.astype(np.float64), channels, -1) if array.ndim == 4 else array.astype(np.float64)
    real = (moved * config.scale - np.array(config.mean)) / np.array(config.std)
    if array.ndim == 4 and real.shape[1:] != shape[1:]:
        real = np.moveaxis(real, -1, 1)
    return np.ascontiguousarray(real, np.float32)


def _by_legal_names(model: OrtModel) -> Runner:
    """``model`` as a function over the graph's names and float32, whatever the model's own are."""
    names = {legal(name): name for name in model.inputs}

    def run(inputs: Arrays) -> Arrays:
        own = {names[n]: a.astype(model.input_dtype(names[n]), copy=False) for n, a in inputs.items() if n in names}
        return {legal(name): array for name, array in model.run(own).items()}

    return run


def _engines(artifact: Artifact, session: Session, threads: int) -> dict[str, Runner]:
    integer = OrtModel(onnx.load_model_from_string(artifact.read(INTEGER_ONNX)), threads=threads)
    return {
        "onnxruntime, integer graph": _by_legal_names(integer),
        f"artifact, {artifact.manifest.target.name}": lambda codes: session.run(codes, raw=True),
    }


def _real_graph(graph: Graph, artifact: Artifact) -> Graph:
    """The imported graph in the shape that the integer graph grew from: its first passes that need no data."""
    passes: list[Pass] = []
    for spelled in artifact.manifest.pipeline:
        (spec,) = parse_pipeline(spelled)
        p = make_pass(spec.name, spec.options)
        if p.needs or p.yields is not Stage.FLOAT:
            break
        passes.append(p)
    return Pipeline(tuple(passes)).run(graph, PassContext())
