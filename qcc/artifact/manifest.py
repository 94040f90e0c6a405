"""The manifest: what an artifact is, what it takes and gives, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field, StringConstraints, ValidationError, model_validator

from qcc.errors import ArtifactError
from qcc.validation import Strict, explain

SCHEMA_VERSION: Final = 1
MANIFEST: Final = "manifest.json"

CodeType = Literal["uint8", "int8", "uint16", "int16", "int32", "int64"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Grid(Strict):
    """real = mult * 2**-shift * (code - zero_point), codes being ``bits`` wide."""

    bits: int = Field(ge=2, le=32)
    mult: int = Field(gt=0, lt=1 << 53)
    shift: int = Field(ge=-160, le=200)
    zero_point: int

    @property
    def scale(self) -> float:
        """The scale, exactly: its multiplier fits a float64's significand."""
        return math.ldexp(self.mult, -self.shift)


class TensorSpec(Strict):
    """An input or output of the artifact.

    ``shape`` has None where the batch goes (axis 0 only). ``dtype`` is the element type of the
    codes; with a ``quant`` they stand for reals of type ``real``, without one for themselves.
    """

    name: str = Field(min_length=1)
    shape: tuple[Annotated[int, Field(ge=0)] | None, ...]
    dtype: CodeType
    quant: Grid | None = None
    real: Literal["float32"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> TensorSpec:
        if None in self.shape[1:]:
            raise ValueError("only axis 0 may be the batch")
        if (self.quant is None) != (self.real is None):
            raise ValueError("'quant' and 'real' go together")
        if self.quant is not None:
            info = np.iinfo(self.dtype)
            if self.quant.bits > info.bits or not self.qmin <= self.quant.zero_point <= self.qmax:
                raise ValueError(f"the grid does not fit {self.dtype}")
        return self

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.dtype)

    @property
    def batched(self) -> bool:
        return bool(self.shape) and self.shape[0] is None

    @property
    def takes_bytes(self) -> bool:
        """Whether the codes are the plain numbers 0 … 255."""
        return self.dtype == "uint8" and self.quant is not None and self.quant.scale == 1 and not self.quant.zero_point

    @property
    def qmin(self) -> int:
        """The lowest code."""
        info = np.iinfo(self.dtype)
        return int(info.min) if self.quant is None else -(1 << (self.quant.bits - 1)) if info.min else 0

    @property
    def qmax(self) -> int:
        """The highest code."""
        info = np.iinfo(self.dtype)
        return int(info.max) if self.quant is None else (1 << (self.quant.bits - bool(info.min))) - 1

    def __str__(self) -> str:
        dims = ", ".join("N" if d is None else str(d) for d in self.shape)
        return f"{self.name} {self.dtype}[{dims}]"


class FileInfo(Strict):
    sha256: Sha256
    size: int = Field(ge=0)

    @classmethod
    def of(cls, data: bytes) -> FileInfo:
        return cls(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


class PluginSpec(Strict):
    """A plug-in by name, with the options that it was given."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class Manifest(Strict):
    """``manifest.json``. Holds nothing that differs between two compilations of the same input."""

    schema_version: Literal[1] = SCHEMA_VERSION
    qcc_version: str
    model: str
    """The model's name: its file's, without the suffix."""
    source_sha256: Sha256
    """Digest of the ONNX model with its external data."""
    target: PluginSpec
    backend: str
    """The ``qcc.backends`` plug-in that runs the files under ``device/``."""
    pipeline: tuple[str, ...]
    """Every pass that ran, as spelled in a pipeline."""
    rounding: Literal["half_up"] = "half_up"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    files: dict[str, FileInfo] = Field(default_factory=dict)
    """All other files, by path relative to the artifact."""
    digest: Sha256 | None = None
    """sha256 of this manifest's own spelling without this field; filled in when it is written."""

    def to_bytes(self) -> bytes:
        """The only spelling of this manifest, sealed: indented JSON, UTF-8, one newline at the end."""
        body = self.model_dump_json(indent=2, exclude={"digest"})
        sealed = self.model_copy(update={"digest": hashlib.sha256(body.encode()).hexdigest()})
        return (sealed.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """The manifest that ``data`` spells. Raises ArtifactError, also where the spelling is not qcc's own."""
        try:
            manifest = cls.model_validate_json(data)
        except ValidationError as e:
            raise ArtifactError(f"{MANIFEST}: {explain(e)[:300]}") from e
        if manifest.to_bytes() != data:
            raise ArtifactError(f"{MANIFEST}: was edited after qcc wrote it")
        return manifest
