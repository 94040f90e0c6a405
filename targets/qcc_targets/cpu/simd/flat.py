"""A block of outputs as one flat run of accumulators, [position, channel], requantized four vectors at a time.

The four vectors become one vector of bytes. Where the block's channels fill it exactly, the
accumulators' columns were permuted beforehand so that the packs leave the bytes in order (``packed``);
otherwise one permutation puts them in order, and vectors may span positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from qcc_targets.cpu.simd import emit
from qcc_targets.cpu.simd.emit import Expr, Memory
from qcc_targets.cpu.simd.epilogue import Constants, Epilogue, packed_order

Place = Callable[[int], tuple[int, Expr, int] | None]
"""Where a position's first channel lies: the base's number, the base, and elements from there; None for nowhere."""


@dataclass(frozen=True, slots=True)
class FlatBlock:
    """``positions`` positions of ``channels`` channels; accumulators lie densely, position by position.

    Of the channels only the first ``valid`` are results.
    """

    epilogue: Epilogue
    positions: int
    channels: int
    valid: int

    @property
    def lanes(self) -> int:
        return self.epilogue.lanes

    @property
    def bytes(self) -> bool:
        """Whether results are bytes, four vectors of accumulators to a vector of them."""
        return self.epilogue.requant.dtype in ("u8", "i8")

    @property
    def packed(self) -> bool:
        return self.channels % (4 * self.lanes) == 0 and self.bytes and self.epilogue.requant.mr is None

    @property
    def period(self) -> int:
        """Vectors after which the channels in the lanes repeat."""
        return self.channels // gcd(self.channels, self.lanes)

    @property
    def groups(self) -> int:
        """Groups of four vectors; the last may run past the block."""
        return -(-self.positions * self.channels // (4 * self.lanes))

    def columns(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """``channels`` [blocks, channels] in the order in which accumulators must lie."""
        if not self.packed:
            return channels
        order = packed_order(self.lanes).ravel()
        whole = np.arange(0, self.channels, 4 * self.lanes)[:, None] + order
        return channels[:, whole.ravel()]

    def constants(self, channels: NDArray[np.int64]) -> NDArray[np.int64]:
        """The epilogue's constants for ``channels`` [blocks, channels], ``period`` records a block."""
        lanes = np.arange(self.period * self.lanes) % self.channels
        return self.epilogue.pack(self.columns(channels)[:, lanes].reshape(-1, self.lanes))

    def begins(self, begin: NDArray[np.int32], channels: NDArray[np.int64]) -> NDArray[np.int32]:
        """What the accumulators of ``channels`` [blocks, channels] begin at, a vector for each record of constants."""
        lanes = np.arange(self.period * self.lanes) % self.channels
        picked = self.columns(channels)[:, lanes]
        return np.where(picked < 0, 0, begin[np.maximum(picked, 0)]).astype(np.int32)

    def load_begins(self, source: Memory, block: Expr) -> list[Expr]:
        return [emit.load(source, (block * self.period + v) * self.lanes, self.lanes) for v in range(self.period)]

    def load_constants(self, source: Memory, block: Expr) -> list[Constants]:
        return [self.epilogue.load(source, block * self.period + v) for v in range(self.period)]

    def group(
        self,
        number: int,
        halves: Callable[[int], tuple[Expr, Expr]],
        constants: Sequence[Constants],
        target: tuple[Memory, Place],
        residual: tuple[Memory, Place] | None = None,
    ) -> None:
        """Requantize and store group ``number``.

        ``halves`` gives the even and odd accumulators of a vector; ``target`` and ``residual`` are
        flat buffers with the places of positions in them.
        """
        first = 4 * number
        last = min(first + 4, -(-self.positions * self.channels // self.lanes))
        found: dict[int, Expr] = {}
        for v in range(first, last):
            if self._runs(target[1], self.lanes * v, self.lanes):  # else none of it is a result
                added = self._residual(residual, v) if residual else None
                found[v] = self.epilogue.requantize(halves(v), constants[v % self.period], added)
        if not self.bytes:
            for v, result in found.items():
                self._scatter(target, self.epilogue.clamped(result), self.lanes * v, self.lanes)
        if not self.bytes or not found:
            return
        anything = next(iter(found.values()))
        results = [found.get(v, anything) for v in range(first, first + 4)]
        self._scatter(target, self._ordered(self.epilogue.narrow(results)), 4 * self.lanes * number, 4 * self.lanes)

    def _ordered(self, packed: Expr) -> Expr:
        """The bytes of a group in flat order."""
        if self.packed:
            return packed
        lanes = self.lanes
        position = packed_order(lanes)[:, ::4].ravel() // 4  # where the packs put each word of flat order
        words = emit.bind(emit.bits(f"int32x{lanes}", packed))
        dtype = "uint8" if self.epilogue.requant.dtype == "u8" else "int8"
        return emit.bind(emit.bits(f"{dtype}x{4 * lanes}", emit.shuffle([words], position.tolist())))

    def _runs(self, place: Place, first: int, count: int) -> list[tuple[int, int, Expr, int]]:
        """Maximal contiguous pieces of ``count`` elements from flat index ``first``.

        Each is (element, length, base, offset); elements that are no results are left out.
        """
        runs: list[tuple[int, int, int, Expr, int]] = []
        flat, stop = first, min(first + count, self.positions * self.channels)
        while flat < stop:
            position, channel = divmod(flat, self.channels)
            length = min(self.channels - channel, stop - flat)
            if channel >= self.valid:
                flat += length
                continue
            length = min(length, self.valid - channel)
            if (spot := place(position)) is None:
                flat += length
                continue
            key, base, offset = spot
            at = offset + channel
            begin, known, last, _, origin = runs[-1] if runs else (0, 0, -1, 0, 0)
            if (last, begin + known, origin + known) == (key, flat - first, at):
                runs[-1] = (begin, known + length, key, base, origin)
            else:
                runs.append((flat - first, length, key, base, at))
            flat += length
        return [(begin, length, base, at) for begin, length, _, base, at in runs]

    def _scatter(self, target: tuple[Memory, Place], value: Expr, first: int, count: int) -> None:
        buffer, place = target
        for begin, length, base, offset in self._runs(place, first, count):
            whole = length == count
            part = value if whole else emit.shuffle([value], range(begin, begin + length))
            emit.store(buffer, base + offset, part, length)

    def _residual(self, source: tuple[Memory, Place], vector: int) -> tuple[Expr, Expr]:
        codes = self._gather(source, vector)
        return self.epilogue.residual_halves(codes, 8 * np.dtype(source[0].buffer.dtype).itemsize)

    def _gather(self, source: tuple[Memory, Place], vector: int) -> Expr:
        """The codes of vector number ``vector`` in flat order; what lies past the block is anything."""
        buffer, place = source
        runs = self._runs(place, self.lanes * vector, self.lanes)
        if len(runs) == 1:
            return emit.load(buffer, runs[0][2] + runs[0][3], self.lanes)
        piece = self.lanes
        for begin, length, *_ in runs:
            piece = gcd(piece, gcd(begin, length))
        found = {
            begin + at: emit.load(buffer, base + offset + at, piece)
            for begin, length, base, offset in runs
            for at in range(0, length, piece)
        }
        anything = next(iter(found.values()))
        parts = [found.get(at, anything) for at in range(0, self.lanes, piece)]
        while len(parts) > 1:
            parts = [emit.shuffle(pair, range(2 * piece)) for pair in zip(parts[0::2], parts[1::2], strict=True)]
            piece *= 2
        return parts[0]
