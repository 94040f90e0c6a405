"""The weights of a contraction by dot products, as they lie in the constants: whole bytes, or packed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.kernel import ALIGN
from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.dot import Dot
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.lowbit import LowBit


@dataclass(frozen=True, slots=True)
class Panel:
    """``vectors`` vectors of weights per step of depth.

    Packed, the slices of a record are steps that follow each other, one record per vector; every
    run of the input begins a new record. Whole bytes count as records of one step.
    """

    dot: Dot
    vectors: int
    packing: LowBit | None

    @property
    def steps(self) -> int:
        """Steps of a record."""
        return self.packing.slices if self.packing else 1

    @property
    def dtype(self) -> str:
        return "uint16" if self.packing else self.dot.dtype

    def records(self, steps: int) -> int:
        """Records that so many steps begin."""
        return -(-steps // self.steps)

    def whole(self, steps: int) -> int:
        """The most steps, no more than ``steps`` if that can be, that fill records."""
        return max(1, steps // self.steps) * self.steps

    def pack(self, weights: NDArray[np.int8], runs: int) -> NDArray[Any]:
        """``weights`` [blocks, runs * steps, vectors, lanes, 4] as the kernel reads them, block by block."""
        if self.packing is None:
            return self.dot.pack(weights)
        blocks, _, vectors, *_ = weights.shape
        by_vector = weights.reshape(blocks, runs, -1, vectors, self.dot.size()).swapaxes(2, 3)
        records = self.packing.records(by_vector)  # [blocks, runs, vectors, records, …]
        return np.ascontiguousarray(records.swapaxes(2, 3))

    def load(self, source: Memory, record: Expr, step: int, vector: int) -> tuple[Expr, ...]:
        """The weights of vector ``vector`` at step ``step`` behind the first of ``record``, as ``Dot`` takes them."""
        if self.packing is None:
            return self.dot.load(source, (record + step) * self.vectors + vector)
        ahead, number = divmod(step, self.steps)
        index = (record + ahead) * self.vectors + vector
        return tuple(self.packing.load(source, index, number, self.dot.size(), half) for half in self._halves)

    @property
    def size(self) -> int:
        """Bytes of a record of one vector."""
        products = self.packing.vectors if self.packing else self.dot.vectors
        return products * self.dot.lanes * 4

    def ahead(self, source: Memory, record: Expr, step: int, distance: int, *, near: bool) -> None:
        """Ask for as many bytes as step ``step`` reads, ``distance`` bytes behind; steps of a record take turns."""
        if step % self.steps:
            return
        itemsize = np.dtype(self.dtype).itemsize
        first = (record + step // self.steps) * (self.vectors * self.size // itemsize)
        for line in range(0, self.vectors * self.size, ALIGN):
            emit.prefetch(source, first + (distance + line) // itemsize, near=near)

    def unpack(self, source: Memory, first: Expr, count: int, target: Memory) -> None:
        """Write ``count`` records from ``first`` on, which are packed, to ``target`` as steps of whole bytes."""
        if self.packing is None:
            raise ValueError("these weights are not packed")
        size, halves = self.dot.size(), self._halves
        each = size // len(halves)
        with emit.loop(count) as record, emit.loop(self.vectors) as vector:
            index = emit.bind((first + record) * self.vectors + vector)
            for number in range(self.steps):
                start = emit.bind(((record * self.steps + number) * self.vectors + vector) * size)
                for at, half in enumerate(halves):
                    value = self.packing.load(source, index, number, size, half)
                    emit.store(target, start + at * each, value, each)

    @property
    def _halves(self) -> tuple[int | None, ...]:
        return (None,) if self.dot.vnni else (0, 1)

    def __str__(self) -> str:
        return f", {self.packing.bits} bits" if self.packing else ""
