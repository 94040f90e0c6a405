"""Verifying an artifact on a user's data: finds the model, and feeds every execution what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from qcc.config import CompileConfig, DataConfig, make_config
from qcc.data import load_data
from qcc.errors import ArtifactError, ConfigError
from qcc.frontend.load import Model, load_model
from qcc.frontend.naming import legal
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import InputPass, Pass
from qcc.passmgr.context import PassContext, Progress
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.passmgr.spelling import parse_pipeline
from qcc.runtime import Session
from qcc.verify.ort import OrtModel
from qcc.verify.report import Runner, VerifyReport, verify_model

Arrays = Mapping[str, NDArray[Any]]
Front = list[tuple[Pass, Graph]]
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
    isa: str | None = None,
    device: int | str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compare the fp32 model, the reference, onnxruntime on the integer graph, and the artifact on ``data``.

    ``model`` is by default looked for beside the artifact and in the working directory; it must be the one that
    the artifact was compiled from. ``layers`` adds the table of layers; ``isa`` and ``device`` are as for ``load``.
    Raises ArtifactError, ConfigError, ModelError; differences are reported, not raised.
    """
    artifact = read_artifact(path)
    config = _config(artifact)
    source = source_model(artifact, model)
    imported = _import(source, config, artifact)
    session = Session(artifact, threads, isa=isa, device=device)
    graph = read_graph(artifact.files)
    shapes = {v.name: v.type.shape for v in graph.inputs}
    loaded = load_data(data, shapes, raw_bytes=all(s.takes_bytes for s in session.inputs))
    CalibrationData(loaded.arrays, loaded.labels).check(graph)
    front = _front(imported.graph, artifact)
    own_border = all(loaded.arrays[s.name].dtype != s.numpy for s in session.inputs) and not _rewrites_inputs(front)
    report = verify_model(
        _by_graph_names(OrtModel(source, threads=threads)),
        graph,
        _model_inputs(session.inputs, imported.graph, front, loaded.arrays),
        engines=_engines(artifact, session, threads, device),
        codes=None if own_border else {s.name: quantize_input(s, loaded.arrays[s.name]) for s in session.inputs},
        labels=loaded.labels,
        real=(front[-1][1] if front else imported.graph) if layers else None,
        progress=progress,
    )
    return Verification(report, (*imported.notes, *loaded.notes))


def model_inputs(artifact: Artifact, model: Path, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """What ``model``, which ``artifact`` was compiled from, takes in the place of ``arrays``, by graph names."""
    graph = _import(model, _config(artifact), artifact).graph
    return _model_inputs(artifact.manifest.inputs, graph, _front(graph, artifact), arrays)


def _config(artifact: Artifact) -> CompileConfig:
    """The configuration that the artifact was compiled with."""
    try:
        fields = yaml.safe_load(artifact.read(CONFIG))
        return make_config({**fields, "output": artifact.path}, CONFIG)
    except (yaml.YAMLError, TypeError, ConfigError) as e:
        raise ArtifactError(f"{artifact.path}: {e}") from e


def source_model(artifact: Artifact, given: Path | None = None) -> Path:
    """``given``, or the model that ``artifact`` was compiled from, beside it or in the working directory.

    Raises ConfigError where it is in neither.
    """
    if given is not None:
        return given
    name = _config(artifact).model.name
    for folder in (artifact.path.parent, Path()):
        if (path := folder / name).is_file():
            return path
    raise ConfigError(f"{name} is not beside {artifact.path}: pass --model")


def _import(source: Path, config: CompileConfig, artifact: Artifact) -> Model:
    model = load_model(source, batch=config.batch, shapes=config.shapes)
    if model.digest != artifact.manifest.source_sha256:
        raise ConfigError(f"{source} is not the model that {artifact.path} was compiled from: its sha256 differs")
    return model


def _front(graph: Graph, artifact: Artifact) -> Front:
    """The first passes of the artifact's pipeline, those that need no data, each with the graph that it makes.

    A pass that changes what an input takes may be among them; the rest leave inputs alone.
    """
    steps: Front = []
    for spelled in artifact.manifest.pipeline:
        (spec,) = parse_pipeline(spelled)
        p = make_pass(spec.name, spec.options)
        if p.needs or p.yields is not Stage.FLOAT:
            break
        graph = Pipeline((p,)).run(graph, PassContext())
        steps.append((p, graph))
    return steps


def _rewrites_inputs(front: Front) -> bool:
    return any(isinstance(p, InputPass) for p, _ in front)


def _model_inputs(specs: Sequence[TensorSpec], graph: Graph, front: Front, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """What the imported model ``graph`` takes in the place of ``arrays``, which the artifact takes."""
    reals = {s.name: _real(s, arrays[s.name]) for s in specs}
    before = graph
    for p, after in front:
        if isinstance(p, InputPass):
            name = p.graph_input(before).name
            reals[name] = p.to_real(reals[name], before)
        before = after
    return reals


def _real(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    return dequantize_output(spec, array) if array.dtype == spec.numpy else array.astype(np.float32)


def own_names(model: OrtModel, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """``arrays`` by the graph's names as ``model`` takes them: by its own names, in its own element types."""
    return {
        name: arrays[legal(name)].astype(model.input_dtype(name), copy=False)
        for name in model.inputs
        if legal(name) in arrays
    }


def _by_graph_names(model: OrtModel) -> Runner:
    """``model`` as a function over the graph's names."""

    def run(inputs: Arrays) -> Arrays:
        return {legal(name): array for name, array in model.run(own_names(model, inputs)).items()}

    return run


def _engines(artifact: Artifact, session: Session, threads: int, device: int | str | None) -> dict[str, Runner]:
    on = "" if device is None else f", device {device}"
    integer = OrtModel(onnx.load_model_from_string(artifact.read(INTEGER_ONNX)), threads=threads)
    return {
        "onnxruntime, integer graph": _by_graph_names(integer),
        f"artifact, {artifact.manifest.target.name}{on}": lambda codes: session.run(codes, raw=True),
    }
