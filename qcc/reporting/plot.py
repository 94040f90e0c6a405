"""The Pareto plot, laid out for inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    label: str
    front: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """Coordinates in pixels; ``line`` joins the dots of the front."""

    title: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    dots: tuple[Dot, ...]
    line: str
    width: int = 720
    height: int = 360
    left: int = 80
    top: int = 20
    right: int = 700
    bottom: int = 310

    @property
    def inner_width(self) -> int:
        return self.right - self.left

    @property
    def inner_height(self) -> int:
        return self.bottom - self.top


def pareto(metric: str, points: Sequence[dict[str, Any]]) -> Plot | None:
    """Softened KL on a logarithmic axis against a cost; None without two points that have both."""
    known = [p for p in points if p["softened"] is not None and metric in p["costs"]]
    if len(known) < 2:
        return None
    xs, ys = [p["costs"][metric] for p in known], [math.log10(max(p["softened"], 1e-9)) for p in known]
    empty = Plot("", "", "", (), (), (), "")
    across = _Scale(min(xs), max(xs), empty.left, empty.right)
    up = _Scale(min(ys), max(ys), empty.bottom, empty.top)
    dots = tuple(
        Dot(across.at(x), up.at(y), _label(metric, p), bool(p["front"])) for x, y, p in zip(xs, ys, known, strict=True)
    )
    front = sorted((d.x, d.y) for d in dots if d.front)
    return Plot(
        f"Softened KL against {metric}",
        metric,
        "KL(fp32 || quantized) of softened outputs, nats per sample, held-out calibration data",
        tuple(Tick(across.at(v), f"{v:.4g}") for v in across.values()),
        tuple(Tick(up.at(v), f"{10**v:.2g}") for v in up.values()),
        dots,
        " ".join(f"{x:.1f},{y:.1f}" for x, y in front),
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """The pixel of a value; a margin of 4 % stays on both sides."""
        span = (self.high - self.low) or abs(self.high) or 1.0
        share = 0.04 + 0.92 * (value - self.low) / span
        return round(self.start + share * (self.stop - self.start), 1)

    def values(self, count: int = 5) -> list[float]:
        return [self.low + (self.high - self.low) * i / (count - 1) for i in range(count)]


def _label(metric: str, point: dict[str, Any]) -> str:
    scores = f"softened KL {point['softened']:.4g}, KL {point['kl']:.4g}"
    return f"{point['config']}: {metric} {point['costs'][metric]:.4g}, {scores}"
