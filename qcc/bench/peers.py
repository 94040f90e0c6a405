"""The engines that an artifact is timed against, each at its best settings and through its public Python call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from qcc.errors import ConfigError, ModelError
from qcc.frontend.naming import legal

Arrays = Mapping[str, NDArray[Any]]
Call = Callable[[], object]
PEERS: Final = ("onnxruntime", "openvino", "onnxruntime-gpu", "torch")
INSTALL_OPENVINO: Final = "pip install 'qcc[openvino]'"


def quantized_by_onnxruntime(model: Path, samples: Sequence[Arrays], folder: Path) -> Path:
    """``model`` as onnxruntime quantizes it, in ``folder``: QDQ, u8 activations, per-channel i8 weights.

    Ranges are minima and maxima on ``samples``, each a call's arrays by the graph's names. The type
    of activations is the one for which x86 has its products. Raises ModelError where it cannot.
    """
    log = logging.getLogger()
    level = log.level
    prepared, quantized = folder / "prepared.onnx", folder / "int8.onnx"
    try:
        log.setLevel(logging.ERROR)  # its advice on pre-processing is not ours to pass on
        quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(quantized),
            _Reader([own_names(onnx.load(prepared), sample) for sample in samples]),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    except Exception as e:  # onnxruntime's quantizer raises whatever comes
        raise ModelError(f"{model}: onnxruntime cannot quantize it: {type(e).__name__}: {e}") from e
    finally:
        log.setLevel(level)
    return quantized


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: Sequence[Arrays]) -> None:
        self._left = list(samples)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return dict(self._left.pop(0)) if self._left else None


def own_names(model: onnx.ModelProto, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """``arrays`` by the graph's names as ``model`` takes them: by its own names, in its own element types."""
    initial = {i.name for i in model.graph.initializer}
    types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input if i.name not in initial}
    return {
        name: arrays[legal(name)].astype(onnx.helper.tensor_dtype_to_np_dtype(kind), copy=False)
        for name, kind in types.items()
        if legal(name) in arrays
    }


def onnxruntime_call(model: Path, arrays: Arrays, threads: int) -> Call:
    """A call of ``model`` on ``arrays`` by onnxruntime, with all optimizations and its threads as it likes them."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    proto = onnx.load(model)
    inputs = own_names(proto, arrays)
    for name, batch in _open_batches(proto, inputs).items():
        options.add_free_dimension_override_by_name(name, batch)
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        session.run(None, inputs)
    except Exception as e:  # onnxruntime's exceptions share no narrower base
        raise ModelError(f"{model}: onnxruntime refuses it: {str(e).strip().splitlines()[0]}") from e
    return lambda: session.run(None, inputs)


def _open_batches(model: onnx.ModelProto, inputs: Arrays) -> dict[str, int]:
    """The named dimensions at axis 0 of inputs, and what they are now."""
    found: dict[str, int] = {}
    for given in model.graph.input:
        dims = given.type.tensor_type.shape.dim
        if given.name in inputs and dims and dims[0].dim_param:
            found[dims[0].dim_param] = len(inputs[given.name])
    return found


def openvino_call(model: Path, arrays: Arrays, threads: int) -> Call:
    """A call of ``model`` on ``arrays`` by OpenVINO: shapes fixed, one stream, no copies at the border.

    Raises ConfigError where OpenVINO is not installed, ModelError where it refuses the model.
    """
    try:
        import openvino
    except ImportError:
        raise ConfigError(f"OpenVINO is not installed: {INSTALL_OPENVINO}") from None
    inputs = {name: np.ascontiguousarray(a) for name, a in own_names(onnx.load(model), arrays).items()}
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    try:
        network = openvino.Core().read_model(str(model))
        network.reshape({name: list(a.shape) for name, a in inputs.items()})
        request = openvino.Core().compile_model(network, "CPU", settings).create_infer_request()
        request.infer(inputs, share_inputs=True, share_outputs=True)
    except Exception as e:  # OpenVINO raises whatever comes
        raise ModelError(f"{model}: OpenVINO refuses it: {str(e).strip().splitlines()[0]}") from e
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)
