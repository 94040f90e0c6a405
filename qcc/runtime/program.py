"""The description of a compiled network: what its library takes, and what its machine must have."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from qcc.errors import ArtifactError
from qcc.validation import Strict, explain

PROGRAM: Final = "network.json"


class Argument(Strict):
    """An input or output of the library: a dense array in logical order, for ``batch`` samples."""

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: Literal["uint8", "int8", "uint16", "int16", "int32", "int64"]
    batched: bool
    """Whether axis 0 of ``shape`` is the batch."""


class Level(Strict):
    """The code for one instruction set.

    ``library``, ``constants`` and ``border`` are names of files beside ``network.json``; the border
    library quantizes inputs, where any have a grid. ``arena`` is the bytes that one call works in,
    ``control`` those through which threads share a call; 0 where they cannot.
    """

    isa: str
    flags: tuple[str, ...]
    """Processor features that the code uses, as Linux lists them."""
    library: str
    constants: str
    border: str | None = None
    arena: int = Field(ge=0, le=1 << 40)
    control: int = Field(default=0, ge=0, le=1 << 30)


class Program(Strict):
    """``network.json``. A library's function takes pointers: inputs, outputs, constants, arena.

    ``levels`` hold the same network for several instruction sets, the richest first. ``batch``
    samples are computed by one call.
    """

    schema_version: Literal[1] = 1
    entry: str
    machine: str
    """The processor family that the code is for, as ``platform.machine()`` spells it."""
    levels: tuple[Level, ...] = Field(min_length=1)
    threads: int = Field(default=1, ge=1)
    """Threads among which the steps of a call are divided."""
    batch: int = Field(ge=1)
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]

    def to_bytes(self) -> bytes:
        """Indented JSON, UTF-8, one newline at the end."""
        return (self.model_dump_json(indent=2) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Program:
        """The program that ``data`` spells. Raises ArtifactError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise ArtifactError(f"{PROGRAM}: {explain(e)[:300]}") from e
