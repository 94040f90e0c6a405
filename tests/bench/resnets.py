"""Published networks by script: their shapes, random weights; for measuring time, not accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

INPUT: Final = "input"
DEPTHS: Final[Mapping[str, tuple[tuple[int, ...], bool]]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet50": ((3, 4, 6, 3), True),
}
"""Blocks per stage, and whether a block is a bottleneck."""


@dataclass
class _Net:
    rng: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)

    def op(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, array: NDArray[Any]) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, gain: float = 1.0, group: int = 1
    ) -> str:
        """A convolution that keeps the variance of what a Relu gave, times ``gain`` squared."""
        deviation = gain * (2 * group / (inputs * kernel * kernel)) ** 0.5
        weight = self.constant(self.rng.normal(0, deviation, (outputs, inputs // group, kernel, kernel)))
        bias = self.constant(self.rng.normal(0, 0.1, outputs))
        return self.op("Conv", [x, weight, bias], strides=[stride] * 2, pads=[kernel // 2] * 4, group=group)

    def relu6(self, x: str) -> str:
        return self.op("Clip", [x, self.constant(np.array(0.0)), self.constant(np.array(6.0))])

    def block(self, x: str, inputs: int, width: int, stride: int, bottleneck: bool) -> tuple[str, int]:
        """A residual block; returns its result and the channels of that."""
        outputs = 4 * width if bottleneck else width
        shortcut = x
        if inputs != outputs or stride != 1:
            shortcut = self.conv(x, inputs, outputs, 1, stride, 0.7)
        if bottleneck:
            y = self.op("Relu", [self.conv(x, inputs, width, 1)])
            y = self.op("Relu", [self.conv(y, width, width, 3, stride)])
            y = self.conv(y, width, outputs, 1, gain=0.3)
        else:
            y = self.op("Relu", [self.conv(x, inputs, width, 3, stride)])
            y = self.conv(y, width, outputs, 3, gain=0.3)
        return self.op("Relu", [self.op("Add", [y, shortcut])]), outputs


def resnet(name: str, seed: int = 0) -> onnx.ModelProto:
    """``resnet18`` or ``resnet50``: input float32 [N, 3, 224, 224], logits [N, 1000]."""
    depths, bottleneck = DEPTHS[name]
    net = _Net(np.random.default_rng(seed))
    x = net.op("Relu", [net.conv(INPUT, 3, 64, 7, 2)])
    x = net.op("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            x, channels = net.block(x, channels, 64 << stage, stride, bottleneck)
    return _classifier(net, name, x, channels, 224, 1000)


def resnet20(seed: int = 0, blocks: int = 3, width: int = 16, size: int = 32) -> onnx.ModelProto:
    """The ResNet for CIFAR-10 (6 ``blocks`` + 2 layers): input float32 [N, 3, 32, 32], logits [N, 10]."""
    net = _Net(np.random.default_rng(seed))
    x, channels = net.op("Relu", [net.conv(INPUT, 3, width, 3)]), width
    for stage in range(3):
        for index in range(blocks):
            x, channels = net.block(x, channels, width << stage, 2 if stage and not index else 1, False)
    return _classifier(net, "resnet20", x, channels, size, 10)


MOBILE: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Stages of MobileNetV2: expansion, channels, blocks, stride of the first."""


def mobilenet_v2(seed: int = 0) -> onnx.ModelProto:
    """MobileNetV2 1.0: input float32 [N, 3, 224, 224], logits [N, 1000]."""
    net = _Net(np.random.default_rng(seed))
    x, channels = net.relu6(net.conv(INPUT, 3, 32, 3, 2)), 32
    for expansion, outputs, count, first in MOBILE:
        for index in range(count):
            stride = first if not index else 1
            hidden = channels * expansion
            y = net.relu6(net.conv(x, channels, hidden, 1)) if expansion > 1 else x
            y = net.relu6(net.conv(y, hidden, hidden, 3, stride, group=hidden))
            y = net.conv(y, hidden, outputs, 1, gain=0.7)
            x = net.op("Add", [x, y]) if stride == 1 and channels == outputs else y
            channels = outputs
    x = net.relu6(net.conv(x, channels, 1280, 1))
    return _classifier(net, "mobilenet_v2", x, 1280, 224, 1000)


def _classifier(net: _Net, name: str, x: str, channels: int, size: int, classes: int) -> onnx.ModelProto:
    """The whole model: mean of ``x`` and a dense layer behind it."""
    x = net.op("Flatten", [net.op("GlobalAveragePool", [x])])
    weight = net.constant(net.rng.normal(0, 0.05, (classes, channels)))
    net.nodes.append(helper.make_node("Gemm", [x, weight, net.constant(np.zeros(classes))], ["logits"], transB=1))
    graph = helper.make_graph(
        net.nodes,
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        net.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    return model


def images(count: int, seed: int = 1, size: int = 224) -> NDArray[np.float32]:
    """Smooth random images, normalized, float32 [count, 3, size, size]; ``size`` is a multiple of 16."""
    grid = size // 16
    coarse = np.random.default_rng(seed).normal(0, 1, (count, 3, grid, grid)).astype(np.float32)
    return coarse.repeat(16, axis=2).repeat(16, axis=3)


def write(name: str, folder: Path) -> Path:
    """The ONNX file of a ResNet in ``folder``."""
    path = folder / f"{name}.onnx"
    onnx.save(resnet(name), path)
    return path
