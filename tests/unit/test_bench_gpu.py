"""Peers on a GPU, as far as they can be tried without one, and the script that measures them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from qcc.bench.ort_gpu_peer import PROVIDER, OrtGpuPeer, in_half_precision, with_batch
from qcc.bench.torch_peer import TorchPeer, program
from qcc.errors import ConfigError, ModelError

SCRIPT = Path(__file__).parents[1] / "bench" / "cuda_gpu.py"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Every operation that PyTorch is given, with paddings that differ between the sides."""
    rng = np.random.default_rng(0)

    def constant(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.normal(0.3, 0.3, shape).astype(np.float32), name)

    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w", "b"], ["1"], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("BatchNormalization", ["1", "s", "b", "m", "v"], ["2"]),
        node("Clip", ["2", "low", "high"], ["3"]),
        node("Conv", ["3", "d"], ["4"], pads=[1, 1, 1, 1], group=4),
        node("Add", ["3", "4"], ["5"]),
        node("Relu", ["5"], ["6"]),
        node("MaxPool", ["6"], ["7"], kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1]),
        node("Concat", ["7", "7"], ["8"], axis=1),
        node("GlobalAveragePool", ["8"], ["9"]),
        node("Flatten", ["9"], ["10"]),
        node("Gemm", ["10", "g", "c"], ["11"], transB=1),
        node("MatMul", ["11", "k"], ["12"]),
        node("Reshape", ["12", "shape"], ["13"]),
        node("Softmax", ["13"], ["y"], axis=-1),
    ]
    constants = [
        *(constant("w", 4, 3, 3, 3), constant("b", 4), constant("s", 4), constant("m", 4), constant("d", 4, 1, 3, 3)),
        *(constant("g", 6, 8), constant("c", 6), constant("k", 6, 6)),
        numpy_helper.from_array(np.ones(4, np.float32), "v"),
        numpy_helper.from_array(np.float32(0), "low"),
        numpy_helper.from_array(np.float32(1), "high"),
        numpy_helper.from_array(np.array([0, 2, 3]), "shape"),
    ]
    graph = helper.make_graph(
        nodes,
        "all",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 3])],
        constants,
    )
    path = tmp_path / "all.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 10
    onnx.save(made, path)
    return path


def by_onnxruntime(path: Path, x: Any) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def test_torch_computes_what_onnx_says(model: Path) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).normal(0, 1, (5, 3, 9, 9)).astype(np.float32)
    run = program(onnx.load(model), torch, lambda tensor: tensor)
    np.testing.assert_allclose(run({"x": torch.from_numpy(x)})[0].numpy(), by_onnxruntime(model, x), atol=1e-6)


def test_torch_names_operations_that_it_is_not_given(model: Path) -> None:
    proto = onnx.load(model)
    proto.graph.node[5].op_type = "Selu"
    with pytest.raises(ModelError, match="PyTorch is given no Selu"):
        program(proto, None, lambda tensor: tensor)


def test_half_precision_has_a_fixed_batch_and_nearly_the_same_values(model: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(0, 1, (5, 3, 9, 9)).astype(np.float32)
    expected = by_onnxruntime(model, x)
    assert (by_onnxruntime(with_batch(model, 5, tmp_path), x) == expected).all()
    half = in_half_precision(model, 5, tmp_path)
    assert onnx.load(half).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5
    assert any(i.data_type == TensorProto.FLOAT16 for i in onnx.load(half).graph.initializer)
    np.testing.assert_allclose(by_onnxruntime(half, x), expected, atol=0.01)


def test_missing_peers_say_what_to_install(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="PyTorch is not installed: pip install torch"):
        TorchPeer(model, {})
    if PROVIDER not in onnxruntime.get_available_providers():
        with pytest.raises(ConfigError, match=f"no {PROVIDER}: pip install onnxruntime-gpu"):
            OrtGpuPeer(model, {})


def measured(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_the_script_says_that_there_is_no_gpu() -> None:
    done = measured("--device", "63")
    assert done.returncode in (2, 7)
    assert len(done.stderr.splitlines()) == 1 and "nothing is measured here" in done.stderr


def test_the_script_compares_and_measures_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    done = measured("--device", "simt", "--batch", "2", "--rounds", "1", "--peers", "onnxruntime-gpu", "tiny")
    assert done.returncode == 0, done.stderr
    assert "no GPU: the kernels run on the host" in done.stdout
    assert "tiny, batch 2: 0 of 20 elements differ from the numpy reference" in done.stdout
    rows = [line.split() for line in done.stdout.splitlines() if " qcc int8 " in line]
    assert [row[:4] for row in rows] == [["tiny", "2", "qcc", "int8"]] and rows[0][-1] == "1.00"
    if PROVIDER not in onnxruntime.get_available_providers():
        assert done.stdout.count("not measured: this onnxruntime has no") == 2
