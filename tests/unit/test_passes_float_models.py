"""The float passes on real models: the same function, in canonical form."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qcc.frontend.load import load_model
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.interp import evaluate
from qcc_passes.canonicalize import Canonicalize
from qcc_passes.fold_batch_norm import FoldBatchNorm

Array = NDArray[np.float32]
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

EXPECTED = {
    "resnet20_cifar10": {"conv2d": 19, "dense": 1, "pad": 2, "reduce_mean": 1, "slice": 4},
    "mlperf_tiny_ic_resnet8": {"conv2d": 9, "dense": 1, "reduce_mean": 1, "reshape": 1, "transpose": 1},
    "kws_dscnn": {"conv2d": 9, "dense": 1, "reduce_mean": 1, "reshape": 2},
    "squeezenet1_1": {"concat": 8, "conv2d": 26, "max_pool2d": 3, "reduce_mean": 1, "reshape": 1},
    "mobilenet_v2_fc8": {"conv2d": 52, "dense": 1, "reduce_mean": 1, "reshape": 1},
    "ultraface_rfb_320": {
        "add": 2, "concat": 5, "conv2d": 52, "map": 3, "mul": 2, "reshape": 8, "slice": 4, "softmax": 1, "sub": 1,
        "transpose": 8,
    },
}  # fmt: skip


def _photo(folder: Path, width: int, height: int) -> Array:
    archive = np.load(folder / "eval" / "imagenet_eval500.npz", allow_pickle=False)
    offsets = archive["offsets"]
    with Image.open(io.BytesIO(archive["jpeg"].tobytes()[offsets[0] : offsets[1]])) as image:
        return np.asarray(image.convert("RGB").resize((width, height)), np.float32)


def _images(folder: Path, model: str) -> Array:
    """One or two real inputs, as the model takes them."""
    if model == "kws_dscnn":
        archive = np.load(folder / "eval" / "kws.npz")
        reals = (archive["test_x"][:2].astype(np.float32) - archive["input_zero_point"]) * archive["input_scale"]
        return np.asarray(reals, np.float32)
    if model == "ultraface_rfb_320":
        return np.asarray(((_photo(folder, 320, 240) - 127) / 128).transpose(2, 0, 1)[None], np.float32)
    if model in ("squeezenet1_1", "mobilenet_v2_fc8"):
        image = (_photo(folder, 224, 224) / 255 - MEAN) / STD
        return np.asarray(image.transpose(2, 0, 1)[None], np.float32)
    images = np.asarray(np.load(folder / "eval" / "cifar10.npz")["test_x"][:2], np.float32)
    if model == "mlperf_tiny_ic_resnet8":
        return images
    return np.asarray(((images / 255 - MEAN) / STD).transpose(0, 3, 1, 2), np.float32)


@pytest.mark.parametrize("model", EXPECTED)
def test_real_models_keep_their_function(data_dir: Path, model: str) -> None:
    graph = load_model(data_dir / "models" / f"{model}.onnx").graph
    after = Pipeline((FoldBatchNorm(), Canonicalize())).run(graph, PassContext())
    assert dict(Counter(o.kind for o in after.ops if o.kind != "constant")) == EXPECTED[model]
    feeds = {graph.inputs[0].name: _images(data_dir, model)}
    wanted, got = evaluate(graph, feeds), evaluate(after, feeds)
    for name, reals in wanted.items():
        np.testing.assert_allclose(got[name], reals, rtol=0, atol=1e-5 * np.abs(reals).max())
    inner = [o for o in after.ops if o.kind == "transpose" and o.operands[0] not in after.inputs]
    assert len(inner) == (8 if model == "ultraface_rfb_320" else 0), "only detection heads reorder their results"
