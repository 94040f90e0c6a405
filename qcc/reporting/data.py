"""What reports say, as plain data: of a search's folder, or of an artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from qcc.artifact.contents import read_graph
from qcc.artifact.sizes import layer_sizes
from qcc.artifact.store import Artifact, read_artifact
from qcc.errors import ArtifactError, TargetError
from qcc.ir.graph import Graph
from qcc.passmgr.plugins import make_target
from qcc.points import REPORT, Point, read_search


def collect(path: Path, *, timed: bool = False) -> dict[str, Any]:
    """Everything about the search or artifact at ``path``; ``timed`` measures an artifact's layers on the device.

    Raises ConfigError, ArtifactError, and TargetError where the target cannot time layers.
    """
    if (path / REPORT).is_file():
        return _of_search(path)
    return _of_artifact(read_artifact(path), timed=timed)


def _of_search(folder: Path) -> dict[str, Any]:
    report = read_search(folder)
    best = [p for p in report.points if p.config is not None]
    return {
        "kind": "search",
        "model": report.model,
        "source_sha256": report.source_sha256,
        "target": report.target,
        "points": [p.model_dump(mode="json", exclude={"details"}) for p in report.points],
        "layers": {str(p.config): _layers_of(p) for p in best},
        "candidates": {str(p.config): p.details.get("candidates", []) for p in best},
        "facts": report.facts,
    }


def _layers_of(point: Point) -> list[dict[str, Any]]:
    """One row per layer, at the bits that the point chose."""
    rows = []
    for layer in point.details.get("layers", []):
        bits = point.weight_bits[layer["layer"]]
        rows.append(
            {
                "layer": layer["layer"],
                "kind": layer["kind"],
                "parameters": layer["parameters"],
                "macs": layer["macs"],
                "bits": bits,
                "bytes": layer["bytes"][str(bits)],
                "seconds": layer["seconds"].get(str(bits)),
                "error": {name: table[str(bits)] for name, table in layer["sensitivity"].items()},
                "sensitivity": layer["sensitivity"],
            }
        )
    return rows


def _of_artifact(artifact: Artifact, *, timed: bool) -> dict[str, Any]:
    graph = read_graph(artifact.files)
    manifest = artifact.manifest
    report = _report(artifact)
    seconds: Mapping[str, float] = {}
    if timed:
        target = make_target(manifest.target.name, manifest.target.options)
        found = target.time_layers(artifact.path)
        if found is None:
            raise TargetError(f"target '{target.name}' cannot time its layers")
        seconds = found
    facts = report.get("facts", {})
    chosen = facts.get("Candidates", {})
    sensitivity = {row["layer"]: row["sensitivity"] for row in chosen.get("layers", [])}
    rounded = {row["layer"]: row for row in facts.get("RoundedWeights", {}).get("layers", [])}
    rows = [_artifact_row(row, sensitivity, seconds, rounded) for row in _weights(graph)]
    return {
        "kind": "artifact",
        "model": manifest.model,
        "source_sha256": manifest.source_sha256,
        "target": manifest.target.name,
        "pipeline": list(manifest.pipeline),
        "weight_bytes": sum(row["bytes"] for row in rows),
        "layers": rows,
        "candidates": chosen.get("candidates", []),
        "warnings": report.get("warnings", []),
        "facts": facts,
    }


def _artifact_row(
    row: dict[str, Any], sensitivity: Mapping[str, Any], seconds: Mapping[str, float], rounded: Mapping[str, Any]
) -> dict[str, Any]:
    tables = sensitivity.get(row["layer"], {})
    error = {name: table.get(str(row["bits"])) for name, table in tables.items()}
    if (verdict := rounded.get(row["layer"])) is not None:
        error["rounding"] = verdict["after"] if verdict["accepted"] else verdict["before"]
    return {**row, "seconds": seconds.get(row["layer"]), "error": error, "sensitivity": tables}


def _weights(graph: Graph) -> list[dict[str, Any]]:
    """Each layer with the bits and bytes that its weights have in the artifact."""
    return [
        {"layer": s.layer, "kind": s.op, "parameters": prod(s.shape), "bits": s.bits, "bytes": s.bytes}
        for s in layer_sizes(graph)
    ]


def _report(artifact: Artifact) -> dict[str, Any]:
    try:
        found = json.loads(artifact.read("report.json"))
    except (ValueError, KeyError, OSError) as e:
        raise ArtifactError(f"{artifact.path}: report.json cannot be read: {e}") from e
    return found if isinstance(found, dict) else {}
