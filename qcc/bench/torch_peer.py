"""PyTorch as a peer on a GPU: half precision, channels last, one CUDA graph per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from qcc.errors import ConfigError, ModelError

Arrays = Mapping[str, NDArray[Any]]
Tensors = dict[str, Any]
Attributes = Mapping[str, Any]
INSTALL_TORCH: Final = "pip install torch"

_WARM_UP: Final = 3
"""Calls before the graph is captured, in which libraries choose their kernels."""


class TorchPeer:
    """``model`` on ``inputs``, by the graph's names, on the GPU numbered ``device``; calling it takes host to host.

    Raises ConfigError where PyTorch or its GPU is missing, ModelError for operations that it is not given here.
    """

    def __init__(self, model: Path, inputs: Arrays, device: int = 0) -> None:
        torch = _torch()
        if not torch.cuda.is_available():
            raise ConfigError("this PyTorch sees no GPU")
        self._torch, self._device = torch, torch.device("cuda", device)
        run = program(onnx.load(model), torch, self._placed)
        self._host = {name: torch.from_numpy(np.ascontiguousarray(a)).pin_memory() for name, a in inputs.items()}
        self._inputs = {name: self._placed(tensor) for name, tensor in self._host.items()}
        with torch.no_grad(), torch.cuda.device(self._device):
            torch.backends.cudnn.benchmark = True
            beside = torch.cuda.Stream()
            with torch.cuda.stream(beside):
                for _ in range(_WARM_UP):
                    run(self._inputs)
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = run(self._inputs)

    def _placed(self, tensor: Any) -> Any:
        """A copy on the GPU: reals in half precision, images with their channels last."""
        torch = self._torch
        half = tensor.to(self._device, torch.float16 if tensor.is_floating_point() else tensor.dtype)
        return half.contiguous(memory_format=torch.channels_last) if half.dim() == 4 else half

    def __call__(self) -> list[Any]:
        for name, tensor in self._host.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        return [output.float().cpu() for output in self._outputs]

    def seconds(self, repeats: int) -> float:
        """Seconds of one inference, inputs and outputs in device memory: the mean of ``repeats`` in a row."""
        torch = self._torch
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._graph.replay()
        before.record()
        for _ in range(repeats):
            self._graph.replay()
        after.record()
        torch.cuda.synchronize()
        return float(before.elapsed_time(after)) / 1e3 / repeats


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ConfigError(f"PyTorch is not installed: {INSTALL_TORCH}") from None
    return torch


def program(model: onnx.ModelProto, torch: Any, placed: Callable[[Any], Any]) -> Callable[[Tensors], list[Any]]:
    """``model`` as a function from input tensors to output tensors; ``placed`` puts its constants where they belong.

    Raises ModelError for operations that are not listed here.
    """
    if unknown := sorted({n.op_type for n in model.graph.node} - set(OPERATIONS)):
        raise ModelError(f"PyTorch is given no {', '.join(unknown)}")
    constants: Tensors = {}
    for i in model.graph.initializer:
        array = numpy_helper.to_array(i)
        constants[i.name] = array if array.dtype == np.int64 else placed(torch.from_numpy(array.copy()))
    nodes = [
        (
            OPERATIONS[n.op_type],
            list(n.input),
            n.output[0],
            {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute},
        )
        for n in model.graph.node
    ]

    def run(inputs: Tensors) -> list[Any]:
        values = constants | inputs
        for work, names, result, attributes in nodes:
            values[result] = work(torch, [values[name] if name else None for name in names], attributes)
        return [values[output.name] for output in model.graph.output]

    return run


def _conv(torch: Any, x: list[Any], a: Attributes) -> Any:
    value, weight, bias = x[0], x[1], x[2] if len(x) > 2 else None
    value, padding = _padded(torch, value, a)
    window = {"stride": a.get("strides", 1), "dilation": a.get("dilations", 1), "groups": a.get("group", 1)}
    return torch.nn.functional.conv2d(value, weight, bias, padding=padding, **window)


def _padded(torch: Any, value: Any, a: Attributes, fill: float = 0.0) -> tuple[Any, list[int]]:
    """``value`` and the padding that is left to its operation, which is the same on both sides of an axis."""
    top, left, bottom, right = a.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return value, [top, left]
    return torch.nn.functional.pad(value, (left, right, top, bottom), value=fill), [0, 0]


def _max_pool(torch: Any, x: list[Any], a: Attributes) -> Any:
    value, padding = _padded(torch, x[0], a, float("-inf"))
    shape = {"kernel_size": a["kernel_shape"], "stride": a.get("strides", 1), "ceil_mode": bool(a.get("ceil_mode", 0))}
    return torch.nn.functional.max_pool2d(value, padding=padding, **shape)


def _batch_norm(torch: Any, x: list[Any], a: Attributes) -> Any:
    value, scale, bias, mean, variance = x
    return torch.nn.functional.batch_norm(value, mean, variance, scale, bias, eps=a.get("epsilon", 1e-5))


def _gemm(torch: Any, x: list[Any], a: Attributes) -> Any:
    weight = x[1] if a.get("transB", 0) else x[1].t()
    return torch.nn.functional.linear(x[0], weight, x[2] if len(x) > 2 else None)


def _clip(torch: Any, x: list[Any], a: Attributes) -> Any:
    low, high = (x[i] if len(x) > i else None for i in (1, 2))
    return torch.clamp(x[0], low, high)


def _reshape(torch: Any, x: list[Any], a: Attributes) -> Any:
    return x[0].reshape([x[0].shape[i] if d == 0 else int(d) for i, d in enumerate(x[1])])


OPERATIONS: Final[Mapping[str, Callable[[Any, list[Any], Attributes], Any]]] = {
    "Add": lambda torch, x, a: x[0] + x[1],
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": lambda torch, x, a: torch.cat(x, dim=a["axis"]),
    "Conv": _conv,
    "Flatten": lambda torch, x, a: x[0].flatten(a.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda torch, x, a: x[0].mean((2, 3), keepdim=True),
    "MatMul": lambda torch, x, a: x[0] @ x[1],
    "MaxPool": _max_pool,
    "Relu": lambda torch, x, a: torch.relu(x[0]),
    "Reshape": _reshape,
    "Softmax": lambda torch, x, a: torch.softmax(x[0], a.get("axis", -1)),
}
