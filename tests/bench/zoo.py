"""The real models with their calibration and evaluation data, preprocessed as each one expects."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[Any]

MEAN: Final = np.array([0.485, 0.456, 0.406])
STD: Final = np.array([0.229, 0.224, 0.225])


@dataclass(frozen=True, slots=True)
class Subject:
    """One model: float inputs to calibrate and to judge on, and labels where there are any.

    ``bytes_in`` are options of ``byte-input`` under which the artifact takes raw bytes, and
    ``raw`` the same data as such bytes; both are None where the input is no image.
    """

    name: str
    path: Path
    input: str
    calibration: Array
    evaluation: Array
    labels: Array | None = None
    bytes_in: Mapping[str, Any] | None = None
    raw: tuple[Array, Array] | None = None


def data_folder() -> Path:
    """QCC_DATA, or ../shared/data beside the repository."""
    return Path(os.environ.get("QCC_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


def subject(name: str) -> Subject:
    """The model ``name`` of ``SUBJECTS`` with its data."""
    return SUBJECTS[name](data_folder(), name)


def imagenet_normalized(images: Array) -> Array:
    """Bytes [N, H, W, 3] as normalized reals [N, 3, H, W], float32."""
    out = np.empty((len(images), 3, *images.shape[1:3]), np.float32)
    for i, image in enumerate(images):
        out[i] = ((image / 255 - MEAN) / STD).transpose(2, 0, 1)
    return out


_IMAGENET_BYTES: Final = {"scale": 1 / 255, "mean": tuple(MEAN), "std": tuple(STD), "layout": "NHWC"}


def _cifar_resnet(root: Path, name: str) -> Subject:
    data = np.load(root / "eval" / "cifar10.npz")
    raw = data["calib_x"], data["test_x"]
    calib, test = map(imagenet_normalized, raw)
    return Subject(name, _model(root, name), "input", calib, test, data["test_y"], _IMAGENET_BYTES, raw)


def _cifar_plain(root: Path, name: str) -> Subject:
    data = np.load(root / "eval" / "cifar10.npz")
    raw = data["calib_x"], data["test_x"]
    calib, test = (x.astype(np.float32) for x in raw)
    return Subject(name, _model(root, name), "input", calib, test, data["test_y"], {"layout": "NHWC"}, raw)


def _keywords(root: Path, name: str) -> Subject:
    data = np.load(root / "eval" / "kws.npz")
    calib, test = (
        ((x.astype(np.float32) - data["input_zero_point"]) * data["input_scale"]).astype(np.float32)
        for x in (data["calib_x"], data["test_x"])
    )
    return Subject(name, _model(root, name), "input", calib, test, data["test_y"])


def _digits(root: Path, name: str) -> Subject:
    """The quickstart's network, which needs no other data."""
    folder = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
    calib, test = (np.load(folder / f"{part}.npz") for part in ("calibration", "evaluation"))
    return Subject(name, folder / "digits.onnx", "image", calib["image"], test["image"], test["labels"])


def _imagenet(root: Path, name: str) -> Subject:
    raw = _jpegs(root / "eval" / "imagenet_calib256.npz"), _jpegs(root / "eval" / "imagenet_eval500.npz")
    labels = np.load(root / "eval" / "imagenet_eval500.npz")["labels"]
    calib, test = map(imagenet_normalized, raw)
    return Subject(name, _model(root, name), "input", calib, test, labels, _IMAGENET_BYTES, raw)


def _faces(root: Path, name: str) -> Subject:
    """A detector without labels: ImageNet pictures resized to its 240 rows and 320 columns."""
    raw = tuple(
        _resized(_jpegs(root / "eval" / f"imagenet_{part}.npz")[:count], (320, 240))
        for part, count in (("calib256", 128), ("eval500", 100))
    )
    calib, test = (((x.astype(np.float32) - 127) / 128).transpose(0, 3, 1, 2).copy() for x in raw)
    options = {"mean": (127.0,), "std": (128.0,), "layout": "NHWC"}
    return Subject(name, _model(root, name), "input", calib, test, None, options, (raw[0], raw[1]))


def _jpegs(path: Path) -> Array:
    data = np.load(path)
    stream, offsets = data["jpeg"].tobytes(), data["offsets"]
    bounds = itertools.pairwise(offsets)
    return np.stack([np.asarray(Image.open(io.BytesIO(stream[a:b])).convert("RGB")) for a, b in bounds])


def _resized(images: Array, size: tuple[int, int]) -> Array:
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.Resampling.BILINEAR)) for i in images])


def _model(root: Path, name: str) -> Path:
    return root / "models" / f"{name}.onnx"


SUBJECTS: Final[Mapping[str, Callable[[Path, str], Subject]]] = {
    "resnet20_cifar10": _cifar_resnet,
    "mlperf_tiny_ic_resnet8": _cifar_plain,
    "kws_dscnn": _keywords,
    "digits": _digits,
    "squeezenet1_1": _imagenet,
    "mobilenet_v2_fc8": _imagenet,
    "ultraface_rfb_320": _faces,
}
