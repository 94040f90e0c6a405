"""Devices: what a part of an FPGA family holds, from files that ship with qcc or that a user writes."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from qcc.documents import read_document
from qcc.errors import ConfigError
from qcc.validation import Strict

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]

RESOURCES: Final = ("luts", "flip_flops", "dsps", "memory_blocks")
"""What a design takes of a device, as ``Device.limits`` names it."""


class Dsp(Strict):
    """Multiplier slices."""

    kind: str
    count: Count
    factors: tuple[Annotated[int, Field(ge=8, le=64)], Annotated[int, Field(ge=8, le=64)]]
    """Bits of the two factors with their signs, the wider one first."""


class Memory(Strict):
    """Blocks of memory of one kind, each in one of ``shapes``: words, and bits of a word."""

    kind: str
    count: Count
    shapes: tuple[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], ...] = Field(min_length=1)

    def blocks(self, words: int, bits: int) -> int:
        """The fewest blocks that hold ``words`` words of ``bits`` bits, all of one shape."""
        return min(-(-words // depth) * -(-bits // width) for depth, width in self.shapes)


class Usable(Strict):
    """The shares of a device that a design may take, so that it can still be placed and routed."""

    luts: Share = 0.7
    flip_flops: Share = 0.7
    dsps: Share = 0.9
    memory_blocks: Share = 0.9


class Device(Strict):
    """A part. ``synthesis`` is the family as yosys calls it, ``clock_mhz`` the clock that a design aims at."""

    format: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    part: str
    """The part's whole order code, for vendor tools and nextpnr."""
    synthesis: Literal["xcup", "xcu", "xc7", "ecp5", "ice40"]
    luts: Count
    lut_inputs: Literal[4, 6]
    flip_flops: Count
    clock_mhz: Annotated[float, Field(gt=0, le=1000)]
    dsp: Dsp | None = None
    memories: tuple[Memory, ...] = Field(min_length=1)
    """The first kind is what memories are counted in."""
    usable: Usable = Usable()

    @model_validator(mode="after")
    def _distinct(self) -> Device:
        kinds = [m.kind for m in self.memories]
        if len(set(kinds)) != len(kinds):
            raise ValueError("two memories share one kind")
        return self

    @property
    def memory(self) -> Memory:
        return self.memories[0]

    def limits(self) -> dict[str, int]:
        """How much of each of ``RESOURCES`` a design may take."""
        whole = (self.luts, self.flip_flops, self.dsp.count if self.dsp else 0, self.memory.count)
        return {name: int(count * getattr(self.usable, name)) for name, count in zip(RESOURCES, whole, strict=True)}


def shipped() -> tuple[str, ...]:
    """The names of the devices that come with qcc."""
    return tuple(sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml")))


def load_device(name: str) -> Device:
    """The shipped device ``name``, or that of a YAML or JSON file where ``name`` ends so. Raises ConfigError."""
    if name.endswith((".yaml", ".yml", ".json")):
        return read_document(Device, Path(name))
    if name not in shipped():
        raise ConfigError(
            f"no device '{name}'; there are {', '.join(shipped())}, and files of your own (ending in .yaml or .json)"
        )
    return read_document(Device, Path(str(_folder() / f"{name}.yaml")))


def _folder() -> Path:
    return Path(str(files("qcc_targets.fpga") / "devices"))
