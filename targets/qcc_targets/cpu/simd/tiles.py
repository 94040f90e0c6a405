"""AMX tiles: their registers, their configuration, and the instructions on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory

REGISTERS: Final = 8
ROWS: Final = 16
"""Rows of a tile, and 32-bit columns of one."""
ROW_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Registers:
    """A block of ``rows`` x ``columns`` accumulator tiles, and the registers that feed it.

    The shorter side's operands have a register each, those of the longer side pass through one: the
    processor renames it, and with fewer registers it has more to rename with. Where another thread
    shares the core, code on four registers runs twice as fast as on all eight. In a ``ragged`` block
    the last column is narrower, so its weights have a register of their own.
    """

    rows: int
    columns: int
    ragged: bool = False

    def __post_init__(self) -> None:
        if self.used > REGISTERS:
            raise ValueError(f"{self.rows}x{self.columns} accumulator tiles leave no registers to feed them")

    @staticmethod
    def fitting(rows: int, columns: int, ragged: bool) -> Registers | None:
        """These registers, or None where the processor has too few."""
        try:
            return Registers(rows, columns, ragged)
        except ValueError:
            return None

    @property
    def used(self) -> int:
        own_last = self.ragged and 1 < self.columns >= self.rows
        return self.rows * self.columns + min(self.rows, self.columns) + 1 + own_last

    def accumulator(self, row: int, column: int) -> int:
        return row * self.columns + column

    def left(self, row: int) -> int:
        """The register for the input tile of a row of accumulators."""
        first = self.rows * self.columns
        return first + (row if self.rows <= self.columns else self.columns)

    def right(self, column: int) -> int:
        """The register for the weight tile of a column."""
        first = self.rows * self.columns
        if self.rows > self.columns:
            return first + column
        return first + self.rows + (self.ragged and 0 < column == self.columns - 1)


def configuration(registers: Registers, rows: int, chunk: int, widths: Sequence[int]) -> NDArray[np.uint8]:
    """The 64 bytes for ``ldtilecfg``: ``rows`` positions, ``chunk`` bytes deep, ``widths`` channels per column."""
    config = np.zeros(64, np.uint8)
    config[0] = 1
    row_bytes = config[16:48].view(np.uint16)

    def shape(register: int, height: int, width: int) -> None:
        config[48 + register] = height
        row_bytes[register] = width

    for row in range(registers.rows):
        shape(registers.left(row), rows, chunk)
        for column, width in enumerate(widths):
            shape(registers.accumulator(row, column), rows, 4 * width)
    for column, width in enumerate(widths):
        shape(registers.right(column), chunk // 4, 4 * width)
    return config


def configure(source: Memory, index: Expr) -> None:
    emit.run("x86.ldtilecfg", emit.address(source, index))


def release() -> None:
    emit.run("x86.tilerelease")


def zero(tile: int) -> None:
    emit.run("x86.tilezero", _number(tile))


def load(tile: int, source: Memory, index: Expr, pitch: int) -> None:
    """Load rows that lie ``pitch`` bytes apart."""
    emit.run("x86.tileloadd64", _number(tile), emit.address(source, index), tirx.IntImm("int64", pitch))


def store(tile: int, target: Memory, index: Expr, pitch: int) -> None:
    """Store rows ``pitch`` bytes apart."""
    emit.run("x86.tilestored64", _number(tile), emit.address(target, index), tirx.IntImm("int64", pitch))


def multiply(accumulator: int, left: int, right: int, *, signed: bool) -> None:
    """Accumulator += left (u8, or i8 where ``signed``) times right (i8)."""
    name = "x86.tdpbssd" if signed else "x86.tdpbusd"
    emit.run(name, _number(accumulator), _number(left), _number(right))


def _number(tile: int) -> Expr:
    return tirx.IntImm("int8", tile)
