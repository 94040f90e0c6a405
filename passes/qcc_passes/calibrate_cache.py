"""Observations kept on disk, named by the hash of all that determines them."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc.ir.text import render
from qcc.passmgr.facts import CalibrationData
from qcc_passes.array_files import write_arrays
from qcc_passes.calibrate_stream import Observations
from qcc_passes.histogram import Histogram

_FORMAT = 3
"""Part of every name: raise it when what is measured, or how it is stored, changes."""

_KINDS = ("plain", "weighted")


def cache_path(folder: Path, graph: Graph, data: CalibrationData, *options: object) -> Path:
    """Where the observations of ``graph`` on ``data``, made with ``options``, belong.

    The text of a graph names its large constants by hash, so it stands for the weights as well.
    """
    key = json.dumps([_FORMAT, render(graph), data_digest(data), *options])
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
    heads = [{name: _head(h) for name, h in table.items()} for table in (seen.histograms, seen.weighted)]
    arrays: dict[str, NDArray[Any]] = {"head": np.frombuffer(json.dumps([seen.images, heads]).encode(), np.uint8)}
    for kind, table in zip(_KINDS, (seen.histograms, seen.weighted), strict=True):
        arrays |= {f"{kind}:{name}": h.counts for name, h in table.items()}
    write_arrays(path, arrays)


def restore(path: Path) -> Observations | None:
    """What ``store`` wrote; None when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            images, heads = json.loads(file["head"].tobytes())
            plain, weighted = (
                {name: _histogram(head, file[f"{kind}:{name}"]) for name, head in table.items()}
                for kind, table in zip(_KINDS, heads, strict=True)
            )
            return Observations(plain, weighted, images)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _head(h: Histogram) -> tuple[float, float, float, int, int]:
    """All fields but the counts, in order."""
    return h.low, h.high, h.zeros, h.exponent, h.first


def _histogram(head: tuple[float, float, float, int, int], counts: NDArray[np.float64]) -> Histogram:
    low, high, zeros, exponent, first = head
    return Histogram(low, high, zeros, exponent, first, counts)
