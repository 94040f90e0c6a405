"""The assignments that were tried, and what each trades: plain values that reports are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Candidate:
    """One assignment and what it costs.

    ``value`` is what its own objective predicts (nats per sample) and ``gap`` how far that is from the
    optimum at most; ``kl`` is measured on held-out data, nats per sample, with its standard error.
    """

    objective: str
    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]
    """By the first value of each site; empty where activations keep their default width."""
    value: float
    gap: float
    costs: Mapping[str, float]
    kl: float
    kl_error: float
    softened: float
    """What candidates are compared by, the least being best: the KL of softened outputs on blends of samples."""
    agreement: float | None


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """A layer as the program saw it: by weight bits its sensitivities, bytes and seconds."""

    layer: str
    kind: str
    parameters: int
    macs: int
    sensitivity: Mapping[str, Mapping[int, float]]
    """Predicted nats per sample, by objective and weight bits."""
    bytes: Mapping[int, int]
    seconds: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Candidates:
    """All that was tried, best first, and the layers that it was about."""

    tried: tuple[Candidate, ...]
    layers: tuple[LayerFacts, ...]
    budgets: Mapping[str, float]
    minimize: str
    activation_plan: Mapping[str, int]
    """The best candidate's activation bits, by value."""
    samples: int
    """Held-out samples that scored the candidates."""

    def report(self) -> dict[str, Any]:
        """Plain data for a report: with each candidate, the layers that have other bits in the best one."""
        best = self.tried[0]
        return {
            "budgets": dict(self.budgets),
            "minimize": self.minimize,
            "scored_on": self.samples,
            "candidates": [{**asdict(c), "differs": _differing(c, best)} for c in self.tried],
            "layers": [_plain(layer) for layer in self.layers],
        }


def _plain(layer: LayerFacts) -> dict[str, Any]:
    """Bits become text, as the keys of JSON are."""
    row = asdict(layer)
    row["sensitivity"] = {name: _by_text(table) for name, table in layer.sensitivity.items()}
    return {**row, "bytes": _by_text(layer.bytes), "seconds": _by_text(layer.seconds)}


def _by_text(table: Mapping[int, Any]) -> dict[str, Any]:
    return {str(bits): value for bits, value in table.items()}


def _differing(candidate: Candidate, best: Candidate) -> dict[str, list[int]]:
    """Bits of the layers that differ: those of the candidate, then those of the best."""
    return {
        name: [bits, best.weight_bits[name]]
        for name, bits in candidate.weight_bits.items()
        if bits != best.weight_bits[name]
    }
