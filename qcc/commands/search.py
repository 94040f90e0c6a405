"""``qcc search``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qcc.commands.compile import resolve
from qcc.commands.console import err, out, print_json, print_table, progress_bars
from qcc.commands.options import (
    DataOption,
    ForceFlag,
    JsonFlag,
    SamplesOption,
    assignments,
    pass_options,
    shapes,
    without_none,
)
from qcc.errors import ConfigError
from qcc.points import REPORT, Point, SearchReport


def search_command(
    model: Annotated[Path | None, typer.Argument(help="ONNX model.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the points.")] = Path("search"),
    budgets: Annotated[
        list[str] | None,
        typer.Option(
            "--budgets", "-b", metavar="METRIC=A,B,…", help="Upper bounds to sweep; low:high:count works too."
        ),
    ] = None,
    minimize: Annotated[
        str | None, typer.Option("--minimize", help="What to make small within them; else: drop.")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML or JSON; flags win over it.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Target; see `qcc targets`.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-O", help="Target option, name=value.")] = None,
    data: DataOption = None,
    samples: SamplesOption = None,
    shape: Annotated[list[str] | None, typer.Option("--shape", help="Sizes of an input: x=-1,3,224,224.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Fix the batch; else it stays open.")] = None,
    pass_option: Annotated[list[str] | None, typer.Option("--pass", "-P", help="pass.option=value.")] = None,
    latency: Annotated[
        Path | None, typer.Option("--latency", help="Latency table; measured, and written there, if it does not exist.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of all randomness.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder that keeps measurements; else in the output.")
    ] = None,
    threads: Annotated[int | None, typer.Option("--threads", "-j", min=1, help="Threads to measure with.")] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the best bits for every budget: a Pareto front of accuracy against cost.

    qcc search net.onnx --data calibration.npz --budgets bits=3,4,5,6,8 -o search

    qcc search net.onnx -d calibration.npz --budgets size=40000:80000:5 --budgets bops=2e9 -o search

    qcc search net.onnx -d calibration.npz --budgets drop=0.001,0.01 --minimize size

    qcc search net.onnx -d calibration.npz --budgets latency=0.001,0.002 --latency latency.json

    qcc compile -c search/point-002.yaml

    Metrics: size (bytes of weights), bits (average per weight), bops, latency (seconds), peak_memory (bytes), drop
    (nats). An interrupted search goes on when it is started again.
    """
    chooser = without_none({"minimize": minimize}) or {}
    passes: dict[str, Any] = pass_options(pass_option or [])
    passes["mixed-precision"] = {**passes.get("mixed-precision", {}), **chooser}
    flags = without_none(
        {
            "model": model,
            "output": output / "model.qcc",
            "batch": batch,
            "seed": seed,
            "cache": cache,
            "threads": threads,
            "target": without_none({"name": target, "options": assignments(option or [], "--option") or None}) or None,
            "data": {"path": data} if data is not None else None,
            "calibration": without_none({"samples": samples}) or None,
            "shapes": shapes(shape or []) or None,
            "passes": passes,
        }
    )
    resolved = resolve(config, flags, {})
    sweep = _sweep(budgets or [])

    from qcc.search import search

    with progress_bars() as progress:
        if latency is not None:
            from qcc.latency import measured_table

            measured_table(resolved, latency, progress=progress)
            resolved = resolved.model_copy(update={"latency": latency})
        report = search(resolved, sweep, output, force=force, progress=progress)
    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        _print(report, output)
    if not any(p.config for p in report.points):
        raise ConfigError(report.points[0].error or "no point was found")


def _sweep(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """``["bits=3,4", "size=1e4:2e4:3"]`` as values by metric. Raises ConfigError."""
    result: dict[str, tuple[float, ...]] = {}
    for text in texts:
        metric, _, values = text.partition("=")
        try:
            if not metric or metric in result:
                raise ValueError
            result[metric] = _values(values)
        except ValueError:
            raise ConfigError(
                f"--budgets takes metric=a,b,… or metric=low:high:count, each metric once, got {text!r}"
            ) from None
    return result


def _values(text: str) -> tuple[float, ...]:
    if ":" not in text:
        return tuple(float(part) for part in text.split(","))
    low, high, count = text.split(":")
    if int(count) < 2:
        raise ValueError
    return tuple(float(v) for v in np.linspace(float(low), float(high), int(count)))


def _print(report: SearchReport, folder: Path) -> None:
    metrics = list(dict.fromkeys(m for p in report.points for m in p.budgets))
    columns = ("config", *(f"{m} of" for m in metrics), "KL nats", "softened", "same %", "front", "by")
    print_table("", columns, [_row(p, metrics) for p in report.points], numbers=1)
    for point in report.points:
        if point.error is not None:
            err().print(f"note: {point.error}")
    out().print(f"\nall points, and what was measured: {folder / REPORT}; as a page: qcc report {folder}")


def _row(point: Point, metrics: Sequence[str]) -> list[object]:
    if point.config is None or point.kl is None or point.kl_error is None or point.softened is None:
        return ["none", *(f"{point.budgets[m]:.4g}" if m in point.budgets else "" for m in metrics), "", "", "", "", ""]
    used = [f"{point.costs[m]:.4g} {point.budgets[m]:.4g}" if m in point.budgets else "" for m in metrics]
    agreement = "" if point.agreement is None else f"{100 * point.agreement:.1f}"
    kl = f"{point.kl:.4f} ± {point.kl_error:.4f}"
    front = "*" if point.front else ""
    return [point.config.removesuffix(".yaml"), *used, kl, f"{point.softened:.3g}", agreement, front, point.objective]
