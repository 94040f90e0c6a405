"""The description of a compiled network: what its library takes, and what its machine must have."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from qcc.errors import ArtifactError
from qcc.validation import Strict, explain

PROGRAM: Final = "network.json"
LIBRARY: Final = "network.so"
CONSTANTS: Final = "constants.bin"
BORDER: Final = "border.so"


class Argument(Strict):
    """An input or output of the library: a dense array in logical order, for ``batch`` samples."""

    name: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    dtype: Literal["uint8", "int8", "uint16", "int16", "int32", "int64"]
    batched: bool
    """Whether axis 0 of ``shape`` is the batch."""


class Program(Strict):
    """``network.json``. The library's function takes pointers: inputs, outputs, constants, arena.

    ``batch`` samples are computed by one call; ``arena`` is the bytes that it works in, 64-byte aligned.
    """

    schema_version: Literal[1] = 1
    entry: str
    machine: str
    """The processor family that the code is for, as ``platform.machine()`` spells it."""
    isa: str
    flags: tuple[str, ...]
    """Processor features that the code uses, as Linux lists them."""
    batch: int = Field(ge=1)
    arena: int = Field(ge=0, le=1 << 40)
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
