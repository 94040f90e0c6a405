"""``network.json``: what a written network is made of, takes and gives."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationError

from qcc.errors import ArtifactError
from qcc.validation import Strict, explain

Count = Annotated[int, Field(ge=1)]


class Words(Strict):
    """A port: words of ``lanes`` elements of ``bits`` bits; element i of a frame is ``order[i]`` of the array."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["uint8", "int8", "uint16", "int16", "int32", "int64"]
    bits: Count
    signed: bool
    lanes: Count
    order: tuple[int, ...]


class StageRow(Strict):
    """A stage: its module, its folding, the cycles of a frame, and the multipliers that it has."""

    name: str
    op: str
    module: str
    pe: Count
    simd: Count
    cycles: Count
    multipliers: int = Field(ge=0)
    accumulator_bits: int | None = None


class QueueRow(Strict):
    name: str
    bits: Count
    words: Count


class Description(Strict):
    """``sources`` are SystemVerilog files in order; ``cycles`` is the prediction of the cycles between frames.

    ``run`` is what executes the network on this side of the hardware.
    """

    format: Literal[1] = 1
    top: str
    sources: tuple[str, ...]
    testbench: str
    run: Literal["rtl", "hls"] = "rtl"
    cycles: Count
    inputs: tuple[Words, ...]
    outputs: tuple[Words, ...]
    stages: tuple[StageRow, ...]
    queues: tuple[QueueRow, ...]

    def to_bytes(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Description:
        """The description that ``data`` spells. Raises ArtifactError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise ArtifactError(f"network.json: {explain(e)[:300]}") from e
