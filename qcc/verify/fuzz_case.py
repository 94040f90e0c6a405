"""A fuzzing case: a graph with inputs, and its form on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ConfigError
from qcc.ir.graph import Graph
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import Const

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One graph at stage INTEGER and codes for its inputs; ``seed`` and ``index`` say where it came from."""

    seed: int
    index: int
    graph: Graph
    inputs: Mapping[str, Array]


def write_case(case: Case, folder: Path, engine: str) -> Path:
    """Write ``<engine>-<seed>-<index>.qir`` and an .npz beside it; returns the path of the text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{engine}-{case.seed}-{case.index}.qir"
    path.write_text(render(case.graph), encoding="utf-8")
    arrays = {f"input:{name}": a for name, a in case.inputs.items()}
    arrays |= {f"const:{digest}": c.array for digest, c in const_store(case.graph).items()}
    arrays["case"] = np.array([case.seed, case.index], np.int64)
    np.savez(path.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    return path


def load_case(path: Path) -> Case:
    """The case that ``write_case`` wrote at ``path``. Raises ConfigError, ParseError."""
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise ConfigError(f"fuzzing case {path} cannot be read: {e}") from e
    store = {name.removeprefix("const:"): Const(a) for name, a in arrays.items() if name.startswith("const:")}
    inputs = {name.removeprefix("input:"): a for name, a in arrays.items() if name.startswith("input:")}
    seed, index = (int(n) for n in arrays["case"])
    return Case(seed, index, parse(text, store), inputs)
