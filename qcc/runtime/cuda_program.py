"""The description of a network for NVIDIA GPUs: machine code by architecture, and the launches of one inference."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from qcc.errors import ArtifactError
from qcc.runtime.program import Argument
from qcc.validation import Strict, explain

CUDA_PROGRAM: Final = "launches.json"

Extent = Annotated[int, Field(ge=1, lt=1 << 31)]


class Address(Strict):
    """A pointer that a kernel is given: ``offset`` bytes into the arena, the constants, an input or an output."""

    space: Literal["arena", "constants", "input", "output"]
    index: int = Field(default=0, ge=0)
    offset: int = Field(default=0, ge=0)


class Launch(Strict):
    """One kernel: its symbol, blocks, threads of a block, bytes of dynamic shared memory, and its pointers in order.

    Launches run one after another. ``op`` and ``result`` tell what is computed, ``template`` by which kernel template.
    """

    kernel: str
    grid: tuple[Extent, Extent, Extent]
    block: tuple[Extent, Extent, Extent]
    shared: int = Field(default=0, ge=0)
    arguments: tuple[Address, ...]
    op: str
    result: str
    template: str


class Image(Strict):
    """Code for one architecture: ``sm_80`` names machine code, ``compute_90`` the text that drivers translate."""

    arch: str = Field(pattern=r"^(sm|compute)_\d+$")
    file: str

    @property
    def number(self) -> int:
        """The compute capability, ten times its major number plus its minor one."""
        return int(self.arch.rpartition("_")[2])

    @property
    def portable(self) -> bool:
        return self.arch.startswith("compute")


class CudaProgram(Strict):
    """``launches.json``. File names are of files beside it; ``source`` is what ``images`` were compiled from.

    ``arena`` is the bytes that one inference works in, contents undefined. Arena, constants, and the dense
    arrays of inputs and outputs start at multiples of 256 bytes. ``batch`` samples are computed by one inference.
    """

    schema_version: Literal[1] = 1
    batch: int = Field(ge=1)
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]
    launches: tuple[Launch, ...]
    arena: int = Field(ge=0, le=1 << 40)
    constants: str
    source: str
    images: tuple[Image, ...] = Field(min_length=1)

    def to_bytes(self) -> bytes:
        """Indented JSON, UTF-8, one newline at the end."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> CudaProgram:
        """The program that ``data`` spells. Raises ArtifactError."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as e:
            raise ArtifactError(f"{CUDA_PROGRAM}: {explain(e)[:300]}") from e
