"""onnxruntime's own static int8 quantization, with each of its calibrators: the yardstick."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.shape_inference import quant_pre_process

from qcc.verify.ort import OrtModel

Array = NDArray[Any]

_PER_CHANNEL: Final = 13


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to call ``quantize_static``: QDQ, per-channel int8 weights, 8-bit activations."""

    method: str
    signed: bool = False
    symmetric: bool = False

    def __str__(self) -> str:
        return f"{self.method}{'-s8' if self.signed else '-u8'}{'-symmetric' if self.symmetric else ''}"


RECIPES = (
    Recipe("MinMax"),
    Recipe("MinMax", signed=True, symmetric=True),
    Recipe("Entropy"),
    Recipe("Entropy", signed=True, symmetric=True),
    Recipe("Percentile"),
    Recipe("Percentile", signed=True, symmetric=True),
)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds ``data`` in batches; a range at a time, so that the calibrators hold few activations at once."""

    def __init__(self, name: str, data: Array, batch: int) -> None:
        self._name, self._data, self._batch = name, data, batch
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return -(-len(self._data) // self._batch)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rows: Iterator[int] = iter(range(start_index * self._batch, end_index * self._batch, self._batch))

    def get_next(self) -> dict[str, Array] | None:
        at = next(self._rows, None)
        return None if at is None else {self._name: self._data[at : at + self._batch]}


def quantized_logits(
    model: Path, recipe: Recipe, name: str, calibration: Array, evaluation: Array, batch: int
) -> dict[str, Array]:
    """Outputs of the model that onnxruntime quantizes by ``recipe``, on ``evaluation``."""
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(_modern(model, Path(folder))), str(prepared), skip_symbolic_shape=True)
        activations = QuantType.QInt8 if recipe.signed else QuantType.QUInt8
        quantize_static(
            prepared,
            quantized,
            _Reader(name, calibration, batch),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[recipe.method],
            extra_options={"ActivationSymmetric": recipe.symmetric, "CalibStridedMinMax": 1},
        )
        return batched(OrtModel(quantized), name, evaluation, batch)


def _modern(path: Path, folder: Path) -> Path:
    """The model at opset 13 at least: before, QuantizeLinear has no channels."""
    model = onnx.load(path)
    own = next(o.version for o in model.opset_import if not o.domain)
    if own >= _PER_CHANNEL:
        return path
    del model.opset_import[:]  # other domains are declared, not used
    model.opset_import.append(onnx.helper.make_opsetid("", own))
    onnx.save(version_converter.convert_version(model, _PER_CHANNEL), folder / "modern.onnx")
    return folder / "modern.onnx"


def batched(model: OrtModel, name: str, data: Array, batch: int) -> dict[str, Array]:
    """All outputs of ``model`` on ``data``, ``batch`` samples at a time."""
    parts = [model.run({name: np.ascontiguousarray(data[at : at + batch])}) for at in range(0, len(data), batch)]
    return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
