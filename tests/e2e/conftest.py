"""The command line called in this process, a tiny ONNX model, and data for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcc.cli import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of an error."""
        (line,) = self.err.splitlines()
        return line


Qcc = Callable[..., Result]


@pytest.fixture
def run_qcc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Qcc:
    """``qcc ARGUMENTS`` as the console script would run it."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["qcc", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return Result(int(caught.value.code or 0), captured.out, captured.err)

    return run


def tiny_model() -> onnx.ModelProto:
    """Image [N, 1, 8, 8] → conv 3x3, Relu → max pool → Gemm → scores [N, 3]."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.normal(0, 0.4, (4, 1, 3, 3)),
        "b": rng.normal(0, 0.1, 4),
        "v": rng.normal(0, 0.2, (3, 64)),
        "c": np.zeros(3),
    }
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("MaxPool", ["relu"], ["pool"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "v", "c"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(a.astype(np.float32), name) for name, a in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.onnx, data.npz (image [32, 1, 8, 8], labels), and tiny.qcc for the reference target."""
    folder = tmp_path_factory.mktemp("tiny")
    onnx.save(tiny_model(), folder / "tiny.onnx")
    rng = np.random.default_rng(2)
    image = rng.normal(0, 1, (32, 1, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", image=image, labels=rng.integers(0, 3, 32))
    return folder


@pytest.fixture(scope="session")
def compiled(tiny: Path) -> Path:
    """tiny.onnx compiled for the reference target, beside it."""
    from qcc.config import make_config
    from qcc.driver import compile_model

    fields = {"model": tiny / "tiny.onnx", "output": tiny / "tiny.qcc", "data": tiny / "data.npz", "target": "ref"}
    return compile_model(make_config(fields)).path
