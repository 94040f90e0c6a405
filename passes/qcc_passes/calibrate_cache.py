"""Observations kept on disk, named by the hash of all that determines them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc.ir.text import render
from qcc.passmgr.facts import CalibrationData
from qcc_passes.calibrate_stream import Observations
from qcc_passes.histogram import Histogram

_FORMAT = 1
"""Part of every name: raise it when what is measured, or how it is stored, changes."""


def cache_path(folder: Path, graph: Graph, data: CalibrationData, images: int) -> Path:
    """Where the observations of ``graph`` on the first ``images`` samples of ``data`` belong.

    The text of a graph names its large constants by hash, so it stands for the weights as well.
    """
    key = json.dumps([_FORMAT, render(graph), data_digest(data), images])
    return folder / f"calibration-{hashlib.sha256(key.encode()).hexdigest()[:40]}.npz"


def data_digest(data: CalibrationData) -> str:
    """sha256 over names, dtypes, shapes and bytes of the arrays; ``data.digest`` where it has one."""
    if data.digest:
        return data.digest
    digest = hashlib.sha256()
    for name, array in sorted(data.arrays.items()):
        digest.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def store(path: Path, seen: Observations) -> None:
    """Write ``seen`` at once: another reader finds the whole file or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heads = {name: astuple(h)[:-1] for name, h in seen.histograms.items()}
    arrays: dict[str, NDArray[Any]] = {"head": np.frombuffer(json.dumps([seen.images, heads]).encode(), np.uint8)}
    arrays |= {f"counts:{name}": h.counts for name, h in seen.histograms.items()}
    for kind, table in (("low", seen.lows), ("high", seen.highs), ("mean", seen.means)):
        arrays |= {f"{kind}:{name}": array for name, array in table.items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def restore(path: Path) -> Observations | None:
    """What ``store`` wrote; None when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, heads = json.loads(file["head"].tobytes())
            histograms = {}
            for name, (low, high, zeros, exponent, first) in heads.items():
                histograms[name] = Histogram(low, high, zeros, exponent, first, file[f"counts:{name}"])
            return Observations(histograms, _table(file, "low"), _table(file, "high"), _table(file, "mean"), images)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _table(file: Mapping[str, NDArray[Any]], kind: str) -> dict[str, NDArray[Any]]:
    return {key.removeprefix(f"{kind}:"): file[key] for key in file if key.startswith(f"{kind}:")}
