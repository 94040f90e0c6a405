"""The real models import, and their float graphs agree with onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcc.frontend.load import Model, load_model
from qcc.ir.graph import Stage
from qcc.ir.types import BATCH

Agrees = Callable[..., Model]

INPUTS = {
    "resnet20_cifar10": (BATCH, 3, 32, 32),
    "mlperf_tiny_ic_resnet8": (BATCH, 32, 32, 3),
    "kws_dscnn": (BATCH, 49, 10, 1),
    "squeezenet1_1": (BATCH, 3, 224, 224),
    "mobilenet_v2_fc8": (BATCH, 3, 224, 224),
    "ultraface_rfb_320": (1, 3, 240, 320),
}


@pytest.mark.parametrize("name", INPUTS)
def test_real_model(name: str, data_dir: Path, agrees: Agrees) -> None:
    path = data_dir / "models" / f"{name}.onnx"
    model = load_model(path)
    (x,) = model.graph.inputs
    assert x.type.shape == INPUTS[name]
    assert model.graph.stage is Stage.FLOAT
    assert model.notes == ()
    shape = (2 if x.type.shape[0] == BATCH else 1, *x.type.shape[1:])
    feeds = {x.name: np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    agrees(path, feeds, rtol=1e-4, atol=1e-4)
