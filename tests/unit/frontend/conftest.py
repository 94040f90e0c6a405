"""Small ONNX models written by hand, and their comparison with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from qcc.frontend.load import Model, load_model
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel

Arrays = Mapping[str, NDArray[Any]]
BuildModel = Callable[..., ModelProto]
WriteModel = Callable[..., Path]
Agrees = Callable[..., Model]


def _info(name: str, shape: Sequence[int | str | None] | None, elem_type: int) -> Any:
    return helper.make_tensor_value_info(name, elem_type, shape)


@pytest.fixture
def build_model() -> BuildModel:
    """Makes a model of nodes, inputs (name → shape, of float32 unless ``types`` says otherwise) and weights."""

    def build(
        nodes: Sequence[NodeProto],
        inputs: Mapping[str, Sequence[int | str | None] | None],
        weights: Arrays | None = None,
        outputs: Sequence[str] = ("y",),
        *,
        opset: int = 17,
        types: Mapping[str, int] | None = None,
        domains: Mapping[str, int] | None = None,
        ir: int = 8,
    ) -> ModelProto:
        kinds = types or {}
        graph = helper.make_graph(
            list(nodes),
            "test",
            [_info(name, shape, kinds.get(name, TensorProto.FLOAT)) for name, shape in inputs.items()],
            [_info(name, None, kinds.get(name, TensorProto.FLOAT)) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        )
        imports = {"": opset, **(domains or {})}
        opsets = [helper.make_opsetid(domain, version) for domain, version in imports.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=ir)

    return build


@pytest.fixture
def write_model(tmp_path: Path, build_model: BuildModel) -> WriteModel:
    """``build_model``, into a file."""

    def write(*args: Any, **keywords: Any) -> Path:
        path = tmp_path / "model.onnx"
        path.write_bytes(build_model(*args, **keywords).SerializeToString())
        return path

    return write


@pytest.fixture
def agrees() -> Agrees:
    """Imports a file, evaluates it on ``feeds``, and compares every output with onnxruntime's."""

    def check(path: Path, feeds: Arrays, *, rtol: float = 1e-4, atol: float = 1e-5, **options: Any) -> Model:
        model = load_model(path, **options)
        given = {v.name: feeds[v.name].astype(v.type.numpy) for v in model.graph.inputs}
        ours, theirs = evaluate(model.graph, given), OrtModel(path, threads=1, optimize=False).run(feeds)
        assert list(ours) == list(theirs)
        for name, expected in theirs.items():
            assert ours[name].shape == expected.shape, name
            np.testing.assert_allclose(ours[name], expected, rtol, atol, err_msg=name)
        return model

    return check


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
