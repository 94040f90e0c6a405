"""Train the quickstart's network on scikit-learn's digits and write its ONNX file and data.

You do not need to run this: ``digits.onnx``, ``calibration.npz`` and ``evaluation.npz`` are in the
repository. To make them anew, in an environment of its own (qcc itself does not need torch):

    pip install torch==2.13.0 onnx scikit-learn
    python examples/quickstart/train.py

The network is small, but has what real ones have: a depthwise-separable residual block, batch
normalization left as nodes, max and global average pooling, and a dense classifier. The ONNX graph
is written node by node from the trained weights, so that what is in the file is plain to see.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 40
TRAINED, CALIBRATED = 1297, 256


class Digits(nn.Module):
    """[N, 1, 8, 8] grey images in [0, 1] to [N, 10] logits; 7 thousand parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16)
        self.pointwise = nn.Conv2d(16, 16, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(16)
        self.widen = nn.Conv2d(16, 32, 3, padding=1)
        self.mix = nn.Conv2d(32, 32, 1, bias=False)
        self.mix_norm = nn.BatchNorm2d(32)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        y = self.depthwise_norm(self.depthwise(x)).relu()
        x = (x + self.pointwise_norm(self.pointwise(y))).relu()
        x = nn.functional.max_pool2d(x, 2)
        x = self.widen(x).relu()
        x = (x + self.mix_norm(self.mix(x))).relu()
        logits: torch.Tensor = self.classifier(x.mean((2, 3)))
        return logits


def batches(images: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One epoch of shuffled batches, each batch shifted by up to one pixel."""
    for rows in torch.randperm(len(images)).split(64):
        dy, dx = torch.randint(-1, 2, (2,)).tolist()
        padded = nn.functional.pad(images[rows], (1, 1, 1, 1))
        yield padded[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx], labels[rows]


def train(images: torch.Tensor, labels: torch.Tensor) -> Digits:
    """The trained network, the same on every run on one machine."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    net = Digits()
    steps = EPOCHS * -(-len(images) // 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for x, y in batches(images, labels):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y, label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


class Writer:
    """Collects ONNX nodes and the trained tensors that they read."""

    def __init__(self, net: Digits) -> None:
        self._state = net.state_dict()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weights(self, *names: str) -> list[str]:
        for name in names:
            self.initializers.append(numpy_helper.from_array(self._state[name].numpy(), name))
        return list(names)

    def node(self, kind: str, inputs: list[str], result: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [result], result, **attributes))
        return result

    def conv(self, x: str, layer: str, kernel: int, *, groups: int = 1, bias: bool = False) -> str:
        tensors = [f"{layer}.weight"] + ([f"{layer}.bias"] if bias else [])
        window = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4, "group": groups}
        return self.node("Conv", [x, *self.weights(*tensors)], layer, **window)

    def conv_norm(self, x: str, layer: str, kernel: int, *, groups: int = 1) -> str:
        norm = f"{layer}_norm"
        tensors = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        x = self.conv(x, layer, kernel, groups=groups)
        return self.node("BatchNormalization", [x, *self.weights(*tensors)], norm, epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x], f"{x}_relu")


def to_onnx(net: Digits) -> onnx.ModelProto:
    """The network as ONNX, opset 17, with a dynamic batch."""
    w = Writer(net)
    stem = w.relu(w.conv_norm("image", "stem", 3))
    x = w.relu(w.conv_norm(stem, "depthwise", 3, groups=16))
    x = w.relu(w.node("Add", [stem, w.conv_norm(x, "pointwise", 1)], "separable"))
    x = w.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    widen = w.relu(w.conv(x, "widen", 3, bias=True))
    x = w.relu(w.node("Add", [widen, w.conv_norm(widen, "mix", 1)], "mixed"))
    x = w.node("Flatten", [w.node("GlobalAveragePool", [x], "mean")], "features", axis=1)
    w.node("Gemm", [x, *w.weights("classifier.weight", "classifier.bias")], "logits", transB=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])
    graph = helper.make_graph(w.nodes, "digits", [image], [logits], w.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.images))
    images = (digits.images[order, None] / 16).astype(np.float32)
    labels = digits.target[order].astype(np.int64)

    net = train(torch.from_numpy(images[:TRAINED]), torch.from_numpy(labels[:TRAINED]))
    with torch.no_grad():
        guesses = net(torch.from_numpy(images[TRAINED:])).argmax(1).numpy()
    print(f"accuracy on {len(guesses)} held-out images: {100 * np.mean(guesses == labels[TRAINED:]):.1f} %")  # noqa: T201

    onnx.save(to_onnx(net), HERE / "digits.onnx")
    np.savez_compressed(HERE / "calibration.npz", image=images[:CALIBRATED])
    np.savez_compressed(HERE / "evaluation.npz", image=images[TRAINED:], labels=labels[TRAINED:])


if __name__ == "__main__":
    main()
