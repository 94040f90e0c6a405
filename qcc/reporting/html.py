"""Reports as one HTML page each: no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qcc.reporting.plot import Plot, pareto


@dataclass(frozen=True, slots=True)
class Row:
    cells: tuple[str, ...]
    front: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


def page(data: Mapping[str, Any]) -> str:
    """The page of what ``collect`` gives."""
    tables, plots = _search(data) if data["kind"] == "search" else _artifact(data)
    environment = Environment(loader=PackageLoader("qcc.reporting", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2").render(
        title=f"{data['model']}: {'search over bits' if data['kind'] == 'search' else 'bits of the artifact'}",
        subtitle=f"target {data['target']}; model sha256 {data['source_sha256']}",
        tables=tables,
        plots=plots,
    )


def _search(data: Mapping[str, Any]) -> tuple[list[Table], list[Plot]]:
    points = data["points"]
    metrics = list(dict.fromkeys(m for p in points for m in p["budgets"]))
    plots = [plot for metric in metrics if (plot := pareto(metric, points)) is not None]
    tables = [_points(points, metrics)]
    for point in points:
        if (name := point["config"]) is None:
            continue
        title = f"{name}: " + ", ".join(f"{m} ≤ {v:g}" for m, v in point["budgets"].items())
        tables += [
            _layers(title, data["layers"][name]),
            _candidates(f"What {name} was chosen from", data["candidates"][name]),
        ]
    return tables, plots


def _artifact(data: Mapping[str, Any]) -> tuple[list[Table], list[Plot]]:
    tables = [_layers(f"Layers: {data['weight_bytes']} bytes of weights", data["layers"])]
    if data["candidates"]:
        tables.append(_candidates("What the bits were chosen from", data["candidates"]))
    return tables, []


def _points(points: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> Table:
    rows = []
    for p in points:
        bounds = [_number(p["budgets"].get(m)) for m in metrics]
        used = [_number(p["costs"].get(m)) for m in metrics]
        scores = [_number(p[k]) for k in ("kl", "kl_error", "softened")]
        scores += [_percent(p["agreement"]), _number(p["gap"])]
        rows.append(Row((p["config"] or p["error"], *bounds, *used, *scores, p["objective"] or ""), p["front"]))
    scores = ["KL", "±", "softened", "same top-1 %", "proven gap"]
    columns = ("point", *(f"{m} ≤" for m in metrics), *metrics, *scores, "objective")
    note = (
        "KL in nats per sample, on calibration data that the choice did not see; softened: of outputs divided by a "
        "temperature, on blends of samples, which ranks assignments with less noise."
    )
    return Table("Points", columns, tuple(rows), note)


def _layers(title: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    objectives = list(dict.fromkeys(name for layer in layers for name in layer["error"]))
    seconds = any(layer["seconds"] is not None for layer in layers)
    rows = []
    for layer in layers:
        errors = [_number(layer["error"].get(name)) for name in objectives]
        time = [_number(None if layer["seconds"] is None else 1e6 * layer["seconds"])] if seconds else []
        cells = (layer["layer"], layer["kind"], str(layer["parameters"]), str(layer["bits"]), str(layer["bytes"]))
        rows.append(Row((*cells, *time, *errors, _exchange(layer))))
    columns = (
        "layer",
        "kind",
        "weights",
        "bits",
        "bytes",
        *(["µs"] if seconds else []),
        *objectives,
        "one step down, up",
    )
    note = (
        "Columns of objectives: the nats per sample that each predicts for the layer at its bits; "
        "of rounding: the squared error of the layer's output, relative to the output's. "
        "Last column: how the first one's prediction changes per thousand bytes, one width down and one up."
    )
    return Table(title, columns, tuple(rows), note if objectives else "")


def _exchange(layer: Mapping[str, Any]) -> str:
    """What the program trades at this layer: nats per thousand bytes, narrower and wider."""
    tables = list(layer["sensitivity"].values())
    if not tables:
        return ""
    by_bits = {int(bits): value for bits, value in tables[0].items()}
    widths = sorted(by_bits)
    if layer["bits"] not in widths:
        return ""
    at = widths.index(layer["bits"])
    parts = []
    for other in (at - 1, at + 1):
        if not 0 <= other < len(widths):
            parts.append("–")
            continue
        size = layer["parameters"] * (widths[other] - layer["bits"]) / 8000
        parts.append(f"{(by_bits[widths[other]] - by_bits[layer['bits']]) / abs(size):+.2g}")
    return ", ".join(parts)


def _candidates(title: str, candidates: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for c in candidates:
        changes = ", ".join(f"{name} {bits[0]} for {bits[1]}" for name, bits in c["differs"].items())
        scores = (_number(c[k]) for k in ("kl", "kl_error", "softened", "value", "gap"))
        size = _number(c["costs"].get("size"))
        rows.append(Row((c["objective"], *scores, size, changes or "the choice"), not c["differs"]))
    columns = ("objective", "KL", "±", "softened", "predicted", "proven gap", "bytes", "bits unlike the choice's")
    return Table(title, columns, tuple(rows))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
