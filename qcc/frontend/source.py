"""Reading the model file: size, protobuf, versions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto

from qcc.errors import ModelError
from qcc.frontend.limits import MAX_FILE_BYTES

OPSETS: Final = range(9, 27)
MAX_IR: Final = 13
DEFAULT_DOMAINS: Final = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class Source:
    """A parsed model: its protobuf, default opset version, the file's size in bytes and sha256."""

    proto: ModelProto
    opset: int
    size: int
    sha256: str


def read_source(path: Path) -> Source:
    """Read and parse the file at ``path``.

    Raises ModelError when it is missing, empty, larger than 2 GiB, not an ONNX model, or of an IR or
    opset version outside what onnxruntime loads.
    """
    data = _read_bytes(path)
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as e:
        raise ModelError(f"{path}: not an ONNX model, or damaged: {e}") from None
    if not proto.HasField("graph") or not proto.graph.output:
        raise ModelError(f"{path}: not an ONNX model, or damaged: it has no graph with outputs")
    if not 3 <= proto.ir_version <= MAX_IR:
        raise ModelError(f"{path}: ONNX IR version {proto.ir_version} is not supported (3 to {MAX_IR} are)")
    if not _is_text(proto.graph):
        raise ModelError(f"{path}: damaged: a name is not UTF-8")
    return Source(proto, _opset(path, proto), len(data), hashlib.sha256(data).hexdigest())


def _read_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ModelError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise ModelError(f"{path}: {size} bytes; models above 2 GiB must keep their weights in external data")
        data = path.read_bytes()
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
    if not data:
        raise ModelError(f"{path}: the file is empty")
    return data


def _is_text(graph: GraphProto) -> bool:
    """Whether every name is text: protobuf yields what is not UTF-8 as bytes."""
    entries = (*graph.input, *graph.output, *graph.initializer, *graph.value_info)
    names = [e.name for e in entries]
    for node in graph.node:
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    for info in (*graph.input, *graph.value_info):
        names += [d.dim_param for d in info.type.tensor_type.shape.dim]
    return all(isinstance(name, str) for name in names)


def _opset(path: Path, proto: ModelProto) -> int:
    """Other domains may be imported as they like: exporters declare many that no node uses."""
    versions = {entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS}
    if len(versions) != 1:
        raise ModelError(f"{path}: the model must import the default ONNX opset once")
    version: int = versions.pop()
    if version not in OPSETS:
        supported = f"{OPSETS[0]} to {OPSETS[-1]}"
        raise ModelError(f"{path}: opset {version} is not supported; export the model with one of {supported}")
    return version
