"""onnxruntime-gpu as a peer: the CUDA provider, its own CUDA graph, inputs and outputs bound to device memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from qcc.bench.peers import own_names
from qcc.errors import ConfigError, ModelError

Arrays = Mapping[str, NDArray[Any]]
PROVIDER: Final = "CUDAExecutionProvider"
INSTALL: Final = "pip install onnxruntime-gpu in the place of onnxruntime"


class OrtGpuPeer:
    """``model`` on ``inputs``, by the graph's names, on the GPU numbered ``device``; calling it takes host to host.

    Raises ConfigError where the provider is missing, ModelError where onnxruntime refuses the model.
    """

    def __init__(self, model: Path, inputs: Arrays, device: int = 0) -> None:
        check_provider()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        provider = (PROVIDER, {"device_id": device, "enable_cuda_graph": "1", "prefer_nhwc": "1"})
        self._arrays = own_names(onnx.load(model), inputs)
        try:
            self._session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
            self._bound = self._session.io_binding()
            self._inputs = {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a), "cuda", device)
                for name, a in self._arrays.items()
            }
            for name, value in self._inputs.items():
                self._bound.bind_ortvalue_input(name, value)
            # A captured graph writes where its first run did: outputs of known shapes are bound once.
            plain = self._session.run(None, self._arrays) if not self._fixed() else None
            for number, output in enumerate(self._session.get_outputs()):
                shape = output.shape if plain is None else list(plain[number].shape)
                kind = np.float16 if output.type == "tensor(float16)" else np.float32
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cuda", device)
                self._bound.bind_ortvalue_output(output.name, value)
            self._session.run_with_iobinding(self._bound)
        except Exception as e:  # onnxruntime's exceptions share no narrower base
            raise ModelError(f"{model}: onnxruntime refuses it: {str(e).strip().splitlines()[0]}") from e

    def _fixed(self) -> bool:
        return all(isinstance(d, int) for output in self._session.get_outputs() for d in output.shape)

    def __call__(self) -> list[Any]:
        for name, array in self._arrays.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self._session.run_with_iobinding(self._bound)
        return [value.numpy() for value in self._bound.get_outputs()]

    def seconds(self, repeats: int) -> float:
        """Seconds of one inference, inputs and outputs in device memory: the mean of ``repeats`` in a row."""
        self._session.run_with_iobinding(self._bound)
        start = time.perf_counter()
        for _ in range(repeats):
            self._session.run_with_iobinding(self._bound)
        self._bound.synchronize_outputs()
        return (time.perf_counter() - start) / repeats


def check_provider() -> None:
    """Raises ConfigError where this onnxruntime runs nothing on GPUs."""
    if PROVIDER not in onnxruntime.get_available_providers():
        raise ConfigError(f"this onnxruntime has no {PROVIDER}: {INSTALL}")


def batch_of(arrays: Arrays) -> int:
    """The samples of one call."""
    return next((len(a) for a in arrays.values() if a.ndim), 1)


def in_half_precision(model: Path, batch: int, folder: Path) -> Path:
    """``model`` in float16, its leading dimension fixed at ``batch``, in ``folder``. Raises ModelError."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    path = folder / f"{model.stem}-fp16.onnx"
    try:
        onnx.save(convert_float_to_float16(onnx.load(with_batch(model, batch, folder)), keep_io_types=True), path)
    except Exception as e:  # the converter raises whatever comes
        raise ModelError(f"{model}: onnxruntime cannot write it in float16: {type(e).__name__}: {e}") from e
    return path


def with_batch(model: Path, batch: int, folder: Path) -> Path:
    """``model`` with ``batch`` in the place of named leading dimensions, which a CUDA graph wants fixed."""
    proto = onnx.load(model)
    for value in (*proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_param:
            dims[0].dim_value = batch
    del proto.graph.value_info[:]
    path = folder / f"{model.stem}-batch{batch}.onnx"
    onnx.save(proto, path)
    return path
