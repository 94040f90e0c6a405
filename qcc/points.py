"""What a search finds: one point per budget, with the configuration that compiles it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from qcc.documents import read_document
from qcc.validation import Strict

REPORT: Final = "search.json"
"""The file in a search's folder that holds its ``SearchReport``."""


class Point(Strict):
    """The best assignment within ``budgets``, or why there is none."""

    budgets: dict[str, float]
    error: str | None = None
    """Why no assignment fits; all fields below are then empty."""
    config: str | None = None
    """The file beside the report that ``qcc compile -c`` takes."""
    objective: str | None = None
    weight_bits: dict[str, int] = Field(default_factory=dict)
    activation_bits: dict[str, int] = Field(default_factory=dict)
    costs: dict[str, float] = Field(default_factory=dict)
    predicted: float | None = None
    """What the objective predicts, nats per sample."""
    gap: float | None = None
    """Proven relative distance of that to the optimum."""
    kl: float | None = None
    """KL(fp32 || candidate) on held-out calibration data, nats per sample."""
    kl_error: float | None = None
    softened: float | None = None
    """The same of softened outputs on blends of samples: what the assignment was chosen by."""
    agreement: float | None = None
    """Share of held-out samples with the same top-1."""
    front: bool = False
    """Whether no other point is as good in all budgeted costs and ``softened``, and better in one."""
    details: dict[str, Any] = Field(default_factory=dict)
    """The report of the pass ``mixed-precision``: all candidates, and the layers' sensitivities and costs."""


class SearchReport(Strict):
    """A sweep over budgets. ``key`` is a hash of all that determines the points."""

    format: Literal[1] = 1
    key: str
    model: str
    source_sha256: str
    target: str
    points: tuple[Point, ...] = ()
    facts: dict[str, Any] = Field(default_factory=dict)
    """Reports of what the passes measured."""

    def write(self, folder: Path) -> None:
        """Replace the report in ``folder`` at once. Raises OSError."""
        temporary = folder / f"{REPORT}.tmp"
        temporary.write_text(json.dumps(self.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / REPORT)


def read_search(folder: Path) -> SearchReport:
    """The report in ``folder``. Raises ConfigError."""
    return read_document(SearchReport, folder / REPORT)


def with_front(points: tuple[Point, ...]) -> tuple[Point, ...]:
    """The points with ``front`` set: not dominated in softened KL and the costs that are budgeted."""
    return tuple(p.model_copy(update={"front": not _dominated(p, points)}) for p in points)


def _dominated(point: Point, points: tuple[Point, ...]) -> bool:
    mine = _merits(point)
    if mine is None:
        return True
    for other in points:
        theirs = _merits(other)
        if theirs is None or len(theirs) != len(mine):
            continue
        if all(t <= m for t, m in zip(theirs, mine, strict=True)) and theirs != mine:
            return True
    return False


def _merits(point: Point) -> tuple[float, ...] | None:
    if point.softened is None:
        return None
    return (point.softened, *(point.costs[metric] for metric in sorted(point.budgets) if metric in point.costs))
