"""``qcc inspect``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcc.commands.console import out, print_json, print_table, size
from qcc.commands.graphs import is_artifact, read_graph_of
from qcc.commands.options import JsonFlag

if TYPE_CHECKING:
    from qcc.artifact.store import Artifact
    from qcc.ir.graph import Graph


def inspect_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="An artifact, an ONNX model, or graph text.")],
    graph: Annotated[bool, typer.Option("--graph", "-g", help="Print the graph's text and nothing else.")] = False,
    layers: Annotated[bool, typer.Option("--layers", help="List the weights of every layer: bits and bytes.")] = False,
    bounds: Annotated[bool, typer.Option("--bounds", help="List the overflow certificate of every operation.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what an artifact or a model holds.

    qcc inspect model.qcc

    qcc inspect model.qcc --layers

    qcc inspect model.qcc --graph

    qcc inspect model.onnx
    """
    from qcc.ir.text import render

    found = read_graph_of(source)
    if graph:
        typer.echo(render(found), nl=False)
        return
    artifact = None
    if is_artifact(Path(source)):
        from qcc.artifact.store import read_artifact

        artifact = read_artifact(Path(source))
    summary = _summary(found, artifact)
    if as_json:
        print_json(summary)
        return
    _print(summary, artifact)
    if layers and summary["weights"]:
        _print_layers(summary)
    if bounds:
        _print_bounds(found)


def _summary(graph: Graph, artifact: Artifact | None) -> dict[str, Any]:
    from qcc.artifact.sizes import layer_sizes

    kinds = Counter(o.kind for o in graph.ops if o.kind != "constant")
    weights = sum(o.array.nbytes for o in graph.ops if o.kind == "constant")
    return {
        "name": graph.name,
        "stage": str(graph.stage),
        "inputs": {v.name: str(v.type) for v in graph.inputs},
        "outputs": {v.name: str(v.type) for v in graph.outputs},
        "operations": dict(sorted(kinds.items())),
        "constant_bytes": weights,
        "weights": [size.describe() for size in layer_sizes(graph)],
        "device": _device_constants(artifact) if artifact else {},
        "memory": _memory(artifact) if artifact else {},
        "manifest": artifact.manifest.model_dump(mode="json") if artifact else None,
        "report": json.loads(artifact.read("report.json")) if artifact and "report.json" in artifact.files else None,
    }


def _print(summary: dict[str, Any], artifact: Artifact | None) -> None:
    console = out()
    console.print(
        f"{summary['name']}  stage {summary['stage']}, constants {size(summary['constant_bytes'])}", markup=False
    )
    for side in ("inputs", "outputs"):
        for name, type_ in summary[side].items():
            console.print(f"{side[:-1]:<7} {name}: {type_}", markup=False)
    console.print()
    print_table("", ("operation", "count"), summary["operations"].items(), numbers=1)
    if artifact is None:
        return
    manifest = artifact.manifest
    console.print()
    console.print(f"qcc      {manifest.qcc_version}, schema {manifest.schema_version}", markup=False)
    console.print(f"model    {manifest.model}, sha256 {manifest.source_sha256[:16]}…", markup=False)
    console.print(f"target   {manifest.target.name} {json.dumps(manifest.target.options)}", markup=False)
    console.print(f"pipeline {', '.join(manifest.pipeline)}", markup=False)
    console.print(f"rounding {manifest.rounding}\n", markup=False)
    rows = [(name, info.sha256[:16] + "…", size(info.size)) for name, info in manifest.files.items()]
    print_table("", ("file", "sha256", "size"), rows, numbers=2)
    if summary["memory"]:
        _print_memory(summary["memory"])


def _memory(artifact: Artifact) -> dict[str, Any]:
    """What the device needs, where the target's static code tells: bytes of ``constants`` and of the ``arena``,
    and of ``code`` and ``stack`` where a ``compiler`` was there to measure them.
    """
    found = artifact.read("device/memory.json") if "device/memory.json" in artifact.files else b"{}"
    return {k: v for k, v in json.loads(found).items() if k != "prefix"}


def _print_memory(memory: dict[str, Any]) -> None:
    """ROM and RAM in bytes."""
    parts = {"ROM": ("constants", "code"), "RAM": ("arena", "stack")}
    known = [(kind, part, memory[part]) for kind, group in parts.items() for part in group if memory.get(part)]
    out().print()
    print_table("", ("memory", "part", "bytes"), known, numbers=2)
    if "compiler" in memory:
        out().print(f"code and stack by {memory['compiler']}", markup=False)


def _device_constants(artifact: Artifact) -> dict[str, int]:
    """Bytes of constants, weights and all, by result, for the first instruction set that the target reports."""
    if "device/kernels.json" not in artifact.files:
        return {}
    rows = next(iter(json.loads(artifact.read("device/kernels.json")).values()))
    return {row["result"]: row["constants"] for row in rows if row.get("constants")}


def _print_layers(summary: dict[str, Any]) -> None:
    out().print()
    device = summary["device"]
    rows = [
        (w["layer"], w["op"], "x".join(map(str, w["shape"])), w["bits"], w["bytes"], device.get(w["layer"], "-"))
        for w in summary["weights"]
    ]
    total = sum(w["bytes"] for w in summary["weights"])
    rows.append(("all weights", "", "", "", total, sum(device.values()) or "-"))
    print_table("", ("layer", "operation", "weights", "bits", "bytes", "device bytes"), rows, numbers=3)


def _print_bounds(graph: Graph) -> None:
    from qcc.ir.bounds import certificates
    from qcc.ir.graph import Stage

    if graph.stage is not Stage.INTEGER:
        return
    out().print()
    rows = [c.row() for c in certificates(graph).values()]
    print_table("", ("value", "operation", "accumulator bits", "epilogue bits"), rows, numbers=2)
