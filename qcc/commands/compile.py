"""``qcc compile``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcc.commands.console import out, print_json, print_notes, print_table, progress_bars, size
from qcc.commands.options import (
    DataOption,
    ForceFlag,
    JsonFlag,
    LayoutOption,
    MeanOption,
    SamplesOption,
    ScaleOption,
    StdOption,
    assignments,
    normalization,
    pass_options,
    shapes,
    without_none,
)
from qcc.errors import ConfigError

if TYPE_CHECKING:
    from qcc.config import CompileConfig
    from qcc.driver import Compiled


def compile_command(
    model: Annotated[Path | None, typer.Argument(help="ONNX model.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Artifact: a .qcc file or a folder.")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML or JSON; flags win over it.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Target; see `qcc targets`.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-O", help="Target option, name=value.")] = None,
    mcpu: Annotated[str | None, typer.Option("--mcpu", help="The CPU to compile for; short for -O mcpu=…")] = None,
    isa: Annotated[
        str | None, typer.Option("--isa", metavar="A,B", help="Instruction sets, all in one artifact: amx,avx2.")
    ] = None,
    data: DataOption = None,
    samples: SamplesOption = None,
    method: Annotated[str | None, typer.Option("--method", help="mse, minmax, percentile or entropy.")] = None,
    input_mode: Annotated[
        str | None, typer.Option("--input", help="float, or uint8: take bytes, the normalization folded in.")
    ] = None,
    mean: MeanOption = None,
    std: StdOption = None,
    scale: ScaleOption = None,
    layout: LayoutOption = None,
    shape: Annotated[
        list[str] | None, typer.Option("--shape", help="Sizes of an input: x=-1,3,224,224 (-1: open).")
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Fix the batch; else it stays open.")] = None,
    pipeline: Annotated[
        str | None, typer.Option("--pipeline", help="A ready-made pipeline, or passes: a, b{option=value}.")
    ] = None,
    pass_option: Annotated[list[str] | None, typer.Option("--pass", "-P", help="pass.option=value.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of all randomness.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder that keeps calibration results.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-j", min=1, help="Threads to compile with.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Compile an ONNX model into an integer-only artifact.

    qcc compile model.onnx --data calibration.npz -o model.qcc

    qcc compile -c qcc.yaml --force

    qcc compile model.onnx -d calibration.npz --isa amx,avx512vbmi,avx2

    qcc compile net.onnx -d photos/ --input uint8 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --scale 1/255
    """
    norm = normalization(mean, std, scale, layout)
    flags: dict[str, Any] = without_none(
        {
            "model": model,
            "output": output,
            "batch": batch,
            "pipeline": pipeline,
            "seed": seed,
            "cache": cache,
            "threads": threads,
            "target": without_none(
                {"name": target, "options": _target_options(option or [], mcpu=mcpu, isa=isa) or None}
            )
            or None,
            "data": {"path": data} if data is not None else None,
            "calibration": without_none({"method": method, "samples": samples}) or None,
            "input": without_none({"mode": input_mode}) or None,
            "shapes": shapes(shape or []) or None,
            "passes": pass_options(pass_option or []) or None,
        }
    )
    resolved = resolve(config, flags, norm)

    from qcc.driver import compile_model

    with progress_bars() as progress:
        result = compile_model(resolved, force=force, progress=progress)
    print_notes(result.notes)
    if as_json:
        print_json(_summary(result))
    else:
        _print(result)


def _target_options(texts: list[str], **short: str | None) -> dict[str, Any]:
    return {**assignments(texts, "--option"), **without_none(short)}


def resolve(path: Path | None, flags: dict[str, Any], norm: dict[str, Any]) -> CompileConfig:
    """The file, then the flags; the normalization goes to the input that takes bytes, else to the data."""
    from qcc.config import make_config, merge, read_fields

    fields = merge(read_fields(path) if path is not None else {}, flags)
    if norm:
        bytes_in = isinstance(fields.get("input"), dict) and fields["input"].get("mode") == "uint8"
        fields = merge(fields, {"input" if bytes_in else "data": norm})
    if "model" not in fields:
        raise ConfigError("no model: name an ONNX file, or a configuration that does with -c")
    fields.setdefault("output", Path(str(fields["model"])).stem + ".qcc")
    return make_config(fields, str(path) if path is not None else "command line")


def _summary(result: Compiled) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "bytes": result.bytes,
        "seconds": dict(result.seconds),
        "total_seconds": sum(result.seconds.values()),
        "peak_rss_bytes": result.peak_rss_bytes,
        "notes": list(result.notes),
        "manifest": result.manifest.model_dump(mode="json"),
    }


def _print(result: Compiled) -> None:
    manifest = result.manifest
    rows = [(step, f"{seconds:.2f}") for step, seconds in result.seconds.items()]
    print_table("", ("step", "seconds"), [*rows, ("total", f"{sum(result.seconds.values()):.2f}")], numbers=1)
    console = out()
    console.print(f"\n{result.path}  {size(result.bytes)}, target {manifest.target.name}", markup=False)
    console.print(f"inputs   {', '.join(map(str, manifest.inputs))}", markup=False)
    console.print(f"outputs  {', '.join(map(str, manifest.outputs))}", markup=False)
    console.print(f"peak memory {size(result.peak_rss_bytes)}")
