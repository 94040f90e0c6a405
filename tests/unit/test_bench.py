"""Timing: turns, caches, peers, and the permission to use AMX."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from qcc.bench.peers import onnxruntime_call, openvino_call, quantized_by_onnxruntime
from qcc.bench.timing import largest_cache, measure
from qcc.errors import ConfigError, ModelError
from qcc.runtime.cpu import processor_flags


def test_every_engine_has_its_turn_in_every_round() -> None:
    turns: list[str] = []
    timings = measure({name: lambda name=name: turns.append(name) for name in "ab"}, 2, cold=True)  # type: ignore[misc]
    assert turns == ["a", "b", "b", "a"]
    assert timings["a"].best <= timings["a"].median


def test_the_largest_cache_is_read(tmp_path: Path) -> None:
    for index, size in enumerate(("48K", "2048K", "36M", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert largest_cache(tmp_path) == 36 << 20
    assert largest_cache(tmp_path / "none") == 64 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A product with x [N, 16], under an input name that graphs cannot hold."""
    weight = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x (in)", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x (in)", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 10
    onnx.save(proto, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def result_of(call: Callable[[], Any]) -> NDArray[Any]:
    outputs = call()
    return np.asarray(outputs[0])


def test_onnxruntime_runs_what_it_quantized(model: Path, tmp_path: Path) -> None:
    inputs = {"x__in_": np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)}
    int8 = quantized_by_onnxruntime(model, [inputs], tmp_path)
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(int8).graph.node}
    exact, close = (result_of(onnxruntime_call(m, inputs, 1)) for m in (model, int8))
    assert close.shape == exact.shape == (3, 4)
    assert 0 < np.abs(close - exact).max() < 0.1


def test_a_peer_that_refuses_a_model_says_so(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="onnxruntime refuses it"):
        onnxruntime_call(model, {"x__in_": np.zeros((3, 5), np.float32)}, 1)
    with pytest.raises(ModelError, match="cannot quantize it"):
        quantized_by_onnxruntime(model, [], tmp_path)


def test_openvino_runs_the_same(model: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    inputs = {"x__in_": np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)}
    found, expected = (result_of(call(model, inputs, 1)) for call in (openvino_call, onnxruntime_call))
    np.testing.assert_allclose(found, expected, atol=0.1)  # OpenVINO computes in bfloat16 where it can


def test_without_openvino_the_error_says_how_to_get_it(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"pip install 'qcc\[openvino\]'"):
        openvino_call(model, {}, 1)


def test_amx_is_refused_to_a_process_that_forbade_it() -> None:
    program = (
        "from qcc.runtime.permission import forbid_amx\nfrom qcc.errors import ArtifactError\n"
        "from qcc.runtime.cpu import request_amx\nforbid_amx()\n"
        "try:\n    request_amx()\nexcept ArtifactError as e:\n    print(e)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "refuses AMX" in done.stdout


def test_amx_cannot_be_forbidden_once_it_is_allowed() -> None:
    """Onnxruntime asks for it when it is imported; then OpenVINO would use it too."""
    if "amx_tile" not in processor_flags():
        pytest.skip("this processor has no AMX")
    program = (
        "from qcc.runtime.cpu import request_amx\nfrom qcc.runtime.permission import forbid_amx\n"
        "request_amx()\nforbid_amx()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "allowed to this process already" in done.stderr
