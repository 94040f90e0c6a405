"""The compiler's configuration: one validated value, from YAML, JSON or flags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, model_validator

from qcc.errors import ConfigError
from qcc.passmgr.spelling import parse_pipeline
from qcc.validation import Strict, explain

M = TypeVar("M", bound=BaseModel)

Layout = Literal["NCHW", "NHWC"]
Channels = Annotated[
    tuple[float, ...], BeforeValidator(lambda v: (v,) if isinstance(v, (int, float)) else v), Field(min_length=1)
]


def _size(value: int) -> int:
    if value == 0:
        raise ValueError("a size is positive, or -1 for what the model says")
    return value


Dims = Annotated[tuple[Annotated[int, Field(ge=-1), AfterValidator(_size)], ...], Field(min_length=1)]


class Normalization(Strict):
    """How an image's bytes become the model's input: real = (byte * scale - mean) / std."""

    mean: Channels = (0.0,)
    std: Channels = (1.0,)
    scale: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _positive_std(self) -> Normalization:
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class InputConfig(Normalization):
    """What the artifact takes: reals (``float``), or raw bytes with the normalization folded in (``uint8``).

    ``layout`` is that of the bytes; without one it is the model's own.
    """

    mode: Literal["float", "uint8"] = "float"
    layout: Layout | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value


class DataConfig(Normalization):
    """Data to calibrate or evaluate on.

    ``path`` is an .npz file, a folder of images, or ``module:function`` (or ``file.py:function``).
    The normalization, and ``layout`` (by default the one that the input's shape suggests), are
    for folders of images. ``samples`` limits how many are read.
    """

    path: str = Field(min_length=1)
    layout: Layout | None = None
    samples: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, (str, Path)) else value

    def absolute(self) -> str:
        """``path`` with its file from the root of the file system; modules stay."""
        return _with_file(self.path, lambda file: str(file.resolve()))

    def limited(self, samples: int | None) -> DataConfig:
        """This, with no more than ``samples`` of it."""
        given = [n for n in (self.samples, samples) if n is not None]
        return self.model_copy(update={"samples": min(given, default=None)})


class TargetConfig(Strict):
    """A target plug-in and its options."""

    name: str = "cpu"
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class CalibrationConfig(Strict):
    """Options of the pass ``calibrate``, by the names that matter most."""

    method: str | None = None
    samples: int | None = Field(default=None, ge=1)


class PassConfig(Strict):
    """One step of a pipeline; in a file also ``name``, ``name{option=value}`` or ``{name: {option: value}}``."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                specs = parse_pipeline(value)
            except ConfigError as e:
                raise ValueError(str(e)) from e
            if len(specs) != 1:
                raise ValueError(f"one pass per entry, got {len(specs)}")
            return {"name": specs[0].name, "options": dict(specs[0].options)}
        if isinstance(value, Mapping) and len(value) == 1 and "name" not in value:
            ((name, options),) = value.items()
            return {"name": name, "options": options or {}}
        return value


def _listed(value: Any) -> Any:
    """A pipeline spelled in one line, as a list of passes; a lone word names a ready-made pipeline."""
    if not isinstance(value, str) or not set(value) & set(",{"):
        return value
    try:
        return [{"name": s.name, "options": dict(s.options)} for s in parse_pipeline(value)]
    except ConfigError as e:
        raise ValueError(str(e)) from e


class CompileConfig(Strict):
    """Everything that ``qcc compile`` is told."""

    model: Path
    output: Path
    target: TargetConfig = TargetConfig()
    data: DataConfig | None = None
    """Calibration data."""
    input: InputConfig = InputConfig()
    shapes: dict[str, Dims] = Field(default_factory=dict)
    """Shapes of inputs whose dimensions the model leaves open; -1 leaves a dimension as it is."""
    batch: int | None = Field(default=None, ge=1)
    """Fixes the batch; None leaves it open."""
    calibration: CalibrationConfig = CalibrationConfig()
    pipeline: Annotated[str | tuple[PassConfig, ...], BeforeValidator(_listed)] = "default"
    """The name of a ready-made pipeline, or all passes in order, as a list or as ``a, b{option=value}``."""
    passes: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of passes of the pipeline, by pass name; they win over the pipeline's own."""
    seed: int = Field(default=0, ge=0)
    cache: Path | None = None
    """A folder that keeps calibration results between compilations."""
    latency: Path | None = None
    """A latency table of this model and device, as ``qcc search --latency`` writes it."""
    threads: int | None = Field(default=None, ge=1)
    """Threads that the compiler may use; None: as many as there are processors."""

    def resolved_yaml(self) -> str:
        """This configuration as YAML, less what cannot change the artifact: where things lie on this machine."""
        fields = self.model_dump(mode="json", exclude={"output", "cache", "threads"})
        fields["model"] = self.model.name
        if self.latency is not None:
            fields["latency"] = self.latency.name
        if self.data is not None:
            fields["data"]["path"] = _with_file(self.data.path, lambda file: file.name)
        return str(yaml.safe_dump(fields, sort_keys=False))


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of the YAML or JSON file ``path``, shorthands written out, not yet validated.

    Relative paths in the file start at its folder. Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    try:
        raw = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path}: {' '.join(str(e).split())}") from e
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise ConfigError(f"{path}: expected a mapping of fields, such as 'model: net.onnx'")
    return _anchored(raw, path.parent)


def make_config(fields: Mapping[str, Any], where: str = "configuration") -> CompileConfig:
    """A validated configuration. Raises ConfigError naming ``where`` and every bad field."""
    return _validated(CompileConfig, fields, where)


def make_data_config(fields: Mapping[str, Any]) -> DataConfig:
    """Where data come from, validated. Raises ConfigError."""
    return _validated(DataConfig, fields, "data")


def _validated(kind: type[M], fields: Mapping[str, Any], where: str) -> M:
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as e:
        raise ConfigError(f"{where}: {explain(e)}") from e


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the entries of ``over``; where both hold a mapping, merged in turn."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _anchored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``raw`` with shorthands written out and relative paths starting at ``folder``."""
    out = dict(raw)
    for key, field in (("target", "name"), ("input", "mode"), ("data", "path")):
        if isinstance(out.get(key), str):
            out[key] = {field: out[key]}
    for key in ("model", "output", "cache", "latency"):
        if isinstance(out.get(key), str):
            out[key] = str(folder / out[key])
    data = out.get("data")
    if isinstance(data, dict) and isinstance(data.get("path"), str):
        out["data"] = {**data, "path": _with_file(data["path"], lambda file: str(folder / file))}
    return out


def _with_file(data_path: str, change: Callable[[Path], str]) -> str:
    """``data_path`` with its file changed: all of it, or what stands before ``:function``; modules stay."""
    head, colon, function = data_path.rpartition(":")
    if not colon:
        return change(Path(data_path))
    return f"{change(Path(head))}:{function}" if head.endswith(".py") else data_path
