"""The fact of what layers cost in time on one device: measured, kept in a file, and checked before use."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from qcc.documents import read_document
from qcc.errors import ConfigError


class LayerLatency(BaseModel):
    """Seconds per call of one layer at each number of weight bits, measured alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: str
    seconds: dict[int, float] = Field(min_length=1)


class EndToEnd(BaseModel):
    """Seconds per call of the whole network with all weights at ``weight_bits``, and what the table predicts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bits: int
    measured: float
    predicted: float


class LatencyTable(BaseModel):
    """Latency by layer and weight bits, of one model on one device.

    A layer's time in the network is its own, measured alone, times ``factor``; ``overhead`` seconds
    come on top per call. Both are fitted to ``end_to_end``. A cost model of a device that is not here
    is such a table, written by hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model_sha256: str
    device: str
    """What the device is: target, its options, and the machine, as in ``c on Cortex-M4 at 80 MHz``."""
    batch: int = 1
    threads: int = 1
    layers: tuple[LayerLatency, ...]
    factor: float = 1.0
    overhead: float = 0.0
    end_to_end: tuple[EndToEnd, ...] = ()

    def of(self, layer: str, weight_bits: int) -> float:
        """Seconds that ``layer`` takes within the network. Raises ConfigError where it was not measured."""
        for row in self.layers:
            if row.layer == layer:
                if weight_bits not in row.seconds:
                    known = ", ".join(map(str, sorted(row.seconds)))
                    raise ConfigError(f"the latency table has layer '{layer}' at {known} bits, not at {weight_bits}")
                return self.factor * row.seconds[weight_bits]
        raise ConfigError(f"the latency table has no layer '{layer}': it is of another model or pipeline")

    def total(self, bits: dict[str, int]) -> float:
        """Predicted seconds per call with ``bits`` by layer. Raises ConfigError."""
        return self.overhead + sum(self.of(layer, width) for layer, width in bits.items())

    def check(self, model_sha256: str, device: str, where: str) -> None:
        """Raise ConfigError, naming the file ``where``, unless the table is of this model and device.

        A ``device`` that names no machine is not here: the table says which one it is of.
        """
        if self.model_sha256 != model_sha256:
            raise ConfigError(f"{where}: latencies of another model; measure this one again")
        if self.device != device and not self.device.startswith(f"{device} on "):
            raise ConfigError(f"{where}: latencies of another device ({self.device}); this one is {device}")


def read_latencies(path: Path) -> LatencyTable:
    """The table in a JSON file. Raises ConfigError."""
    return read_document(LatencyTable, path)
