"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from qcc.errors import ConfigError

ArtifactArg = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Artifact: a folder or a .qcc file.")]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
IsaOption = Annotated[
    str | None, typer.Option("--isa", metavar="NAME", help="The instruction set to use, of those in the artifact.")
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device", metavar="N|NAME", help="The GPU's number; simt or simt-racecheck run CUDA kernels without a GPU."
    ),
]
ThreadsOption = Annotated[int, typer.Option("--threads", "-j", min=1, help="Threads to run on.")]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", "-d", metavar="DATA", help="An .npz named like the inputs, a folder of images, or module:function."
    ),
]
SamplesOption = Annotated[int | None, typer.Option("--samples", "-n", min=1, help="Use the first so many samples.")]
MeanOption = Annotated[
    str | None, typer.Option("--mean", metavar="A,B,C", help="Images: real = (byte * scale - mean) / std.")
]
StdOption = Annotated[str | None, typer.Option("--std", metavar="A,B,C", help="Images: divisor per channel.")]
ScaleOption = Annotated[str | None, typer.Option("--scale", metavar="X", help="Images: factor of a byte, like 1/255.")]
LayoutOption = Annotated[str | None, typer.Option("--layout", metavar="NCHW|NHWC", help="Images: order of the axes.")]


def on_device(text: str | None) -> int | str | None:
    """A device's number, or the name of what stands for one."""
    return int(text) if text is not None and text.isdecimal() else text


def numbers(text: str, option: str) -> tuple[float, ...]:
    """``0.5,1/255`` as floats. Raises ConfigError naming ``option``."""
    try:
        return tuple(_number(part) for part in text.split(","))
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{option} takes numbers separated by commas, got {text!r}") from None


def _number(text: str) -> float:
    dividend, slash, divisor = text.partition("/")
    return float(dividend) / float(divisor) if slash else float(dividend)


def normalization(mean: str | None, std: str | None, scale: str | None, layout: str | None) -> dict[str, Any]:
    """The fields of a ``Normalization`` that flags give, with ``layout``."""
    fields: dict[str, Any] = {}
    if mean is not None:
        fields["mean"] = numbers(mean, "--mean")
    if std is not None:
        fields["std"] = numbers(std, "--std")
    if scale is not None:
        (fields["scale"],) = numbers(scale, "--scale")[:1]
    if layout is not None:
        fields["layout"] = layout
    return fields


def shapes(texts: Sequence[str]) -> dict[str, list[int]]:
    """``["x=1,3,224,224"]`` as sizes by input name. Raises ConfigError."""
    result: dict[str, list[int]] = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        try:
            result[name] = [int(d) for d in dims.replace("x", ",").split(",")]
        except ValueError:
            name = ""
        if not name:
            raise ConfigError(f"--shape takes input=1,3,224,224, got {text!r}")
    return result


def assignments(texts: Sequence[str], option: str) -> dict[str, Any]:
    """``["mcpu=native", "tile=[1,2]"]`` as values by name; a value that is no JSON is text. Raises ConfigError."""
    result: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"{option} takes name=value, got {text!r}")
        try:
            result[name] = json.loads(value)
        except json.JSONDecodeError:
            result[name] = value
    return result


def pass_options(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``["calibrate.method=mse"]`` as options by pass name. Raises ConfigError."""
    result: dict[str, dict[str, Any]] = {}
    for name, value in assignments(texts, "--pass").items():
        owner, dot, field = name.partition(".")
        if not dot or not field:
            raise ConfigError(f"--pass takes pass.option=value, got {name!r}")
        result.setdefault(owner, {})[field] = value
    return result


def without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    """``fields`` less what was not given."""
    return {name: value for name, value in fields.items() if value is not None}
