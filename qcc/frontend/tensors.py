"""Decoding of ONNX tensors, in the model file or in files beside it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from qcc.errors import ModelError
from qcc.frontend.limits import MAX_FOLDED_ELEMENTS

_RAW: Final[dict[int, np.dtype[Any]]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
    TensorProto.BFLOAT16: np.dtype("<u2"),  # numpy has no such type: widened by hand
    TensorProto.INT8: np.dtype("i1"),
    TensorProto.UINT8: np.dtype("u1"),
    TensorProto.INT16: np.dtype("<i2"),
    TensorProto.UINT16: np.dtype("<u2"),
    TensorProto.INT32: np.dtype("<i4"),
    TensorProto.UINT32: np.dtype("<u4"),
    TensorProto.INT64: np.dtype("<i8"),
    TensorProto.UINT64: np.dtype("<u8"),
    TensorProto.BOOL: np.dtype("?"),
}
_FIELD: Final = {
    TensorProto.FLOAT: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.UINT32: "uint64_data",
}
_HALVES: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS: Final = {*_HALVES, TensorProto.FLOAT, TensorProto.DOUBLE}


def element_name(elem_type: int) -> str:
    """The name of an ONNX element type, in lower case; a number where there is none."""
    known = elem_type in TensorProto.DataType.values()
    return TensorProto.DataType.Name(elem_type).lower() if known else f"type {elem_type}"


def numpy_type(elem_type: int) -> np.dtype[Any]:
    """The numpy type that tensors of an ONNX element type are computed in: every float is float32.

    Raises ModelError when tensors of this type have no numeric meaning here (strings, 4-bit, 8-bit floats).
    """
    if elem_type in _FLOATS:
        return np.dtype(np.float32)
    if elem_type not in _RAW:
        raise ModelError(f"element type {element_name(elem_type)} is not supported")
    return _RAW[elem_type].newbyteorder("=")


class TensorReader:
    """Decodes tensors of one model. ``folder`` is the only place external data may come from.

    ``converted`` counts tensors by the float type that was narrowed or widened to float32;
    ``digest`` covers every external byte that was read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.converted: dict[str, int] = {}
        self.digest = hashlib.sha256()

    def read(self, tensor: TensorProto) -> NDArray[Any]:
        """The tensor's elements; floats of any width become float32. Raises ModelError."""
        try:
            return self._read(tensor)
        except ModelError as e:
            raise ModelError(f"tensor '{tensor.name}': {e}") from None

    def _read(self, tensor: TensorProto) -> NDArray[Any]:
        target = numpy_type(tensor.data_type)
        shape = tuple(tensor.dims)
        if len(shape) > 32 or any(d < 0 for d in shape):
            raise ModelError(f"bad shape {list(shape)}")
        size = math.prod(shape)
        if size > MAX_FOLDED_ELEMENTS * 16:
            raise ModelError(f"{size} elements are too many")
        if tensor.HasField("segment"):
            raise ModelError("is stored in segments, which no runtime reads: store it whole")
        stored = _RAW[tensor.data_type]
        if tensor.data_location == TensorProto.EXTERNAL:
            flat = np.frombuffer(self._external(tensor, size * stored.itemsize), stored)
        elif tensor.HasField("raw_data"):
            flat = _from_raw(tensor.raw_data, stored, size)
        else:
            flat = _from_field(tensor, stored, size)
        if tensor.data_type in _FLOATS and stored != target:
            name = element_name(tensor.data_type)
            self.converted[name] = self.converted.get(name, 0) + 1
        if tensor.data_type == TensorProto.BFLOAT16:
            return (flat.astype(np.uint32) << 16).view(np.float32).reshape(shape)
        with np.errstate(all="ignore"):  # an overflow becomes Inf, which no constant may hold
            return flat.astype(target).reshape(shape)

    def _external(self, tensor: TensorProto, size: int) -> bytes:
        entries = {e.key: e.value for e in tensor.external_data}
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        except ValueError:
            raise ModelError("external data: offset and length must be integers") from None
        if offset < 0 or length != size:
            raise ModelError(f"external data: {size} bytes are needed, the model says {length} at offset {offset}")
        path = self._inside(entries.get("location", ""))
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except (OSError, ValueError, OverflowError) as e:
            raise ModelError(f"external data: cannot read '{path.name}': {getattr(e, 'strerror', None) or e}") from None
        if len(data) != size:
            raise ModelError(f"external data: '{path.name}' ends before offset {offset} + {size} bytes")
        self.digest.update(data)
        return data

    def _inside(self, location: str) -> Path:
        try:
            relative = Path(location)
            if not location or relative.is_absolute() or ".." in relative.parts or "\\" in location:
                raise ModelError(f"external data: location {location!r} must be a file below the model's folder")
            path = (self._folder / relative).resolve()
            if not path.is_relative_to(self._folder):
                raise ModelError(f"external data: {location!r} is a link that leaves the model's folder")
            if not path.is_file():
                raise ModelError(f"external data: no file {location!r} beside the model")
        except (OSError, ValueError) as e:
            raise ModelError(f"external data: bad location {location!r}: {e}") from None
        return path


def _from_raw(data: bytes, stored: np.dtype[Any], size: int) -> NDArray[Any]:
    if len(data) != size * stored.itemsize:
        raise ModelError(f"holds {len(data)} bytes, its shape needs {size * stored.itemsize}")
    return np.frombuffer(data, stored)


def _from_field(tensor: TensorProto, stored: np.dtype[Any], size: int) -> NDArray[Any]:
    data = getattr(tensor, _FIELD.get(tensor.data_type, "int32_data"))
    if len(data) != size:
        raise ModelError(f"holds {len(data)} elements, its shape needs {size}")
    if tensor.data_type in _HALVES:
        return np.array(data, np.int64).astype(np.uint16).view(stored)
    if stored.kind in "iu":
        wide = np.array(data, np.uint64 if stored.kind == "u" and stored.itemsize > 4 else np.int64)
        return wide.astype(stored)
    return np.array(data, stored)
