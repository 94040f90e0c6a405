"""What the functions of a border library that serve a whole call are given: a table of addresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qcc.artifact.manifest import TensorSpec

ENCODE: Final = "qcc_encode"
DECODE: Final = "qcc_decode"
CALL: Final = "qcc_call"

_EXACT_BITS: Final = 24
"""Multipliers of scales that have no more bits than this are quantized exactly by multiplication."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Where the words of a call stand in its table.

    First the addresses of the network's function, its constants and its arena, and what becomes 1 where
    an input holds NaN, else 0. Then the addresses of what the caller gives, inputs and outputs: reals of
    those that have a grid, codes of others. Then those of the codes of the former.
    """

    inputs: int
    outputs: int
    network: Final[int] = 0
    constants: Final[int] = 1
    arena: Final[int] = 2
    nan: Final[int] = 3

    def input(self, number: int) -> int:
        return 4 + number

    def output(self, number: int) -> int:
        return 4 + self.inputs + number

    def input_codes(self, number: int) -> int:
        return 4 + self.inputs + self.outputs + number

    def output_codes(self, number: int) -> int:
        return 4 + 2 * self.inputs + self.outputs + number

    @property
    def count(self) -> int:
        return 4 + 2 * (self.inputs + self.outputs)


def encoded(spec: TensorSpec) -> bool:
    """Whether the border library makes the codes of an input, exactly, from its reals."""
    if spec.quant is None or spec.numpy.itemsize > 2:
        return False
    odd = spec.quant.mult // (spec.quant.mult & -spec.quant.mult)
    return odd.bit_length() <= _EXACT_BITS
