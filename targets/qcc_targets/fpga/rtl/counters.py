"""Loops as counters, affine expressions over them as running sums, and constants in read-only memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.bounds import Interval
from qcc_targets.fpga.rtl.circuit import Circuit, Signal, literal
from qcc_targets.fpga.rtl.tensorir import Affine, Loop, enumerate_index, relevant

Array = NDArray[Any]


def width(count: int) -> int:
    """Bits of a counter that takes ``count`` values."""
    return max(1, (count - 1).bit_length())


def sequential(condition: str, reset: Sequence[str], body: Sequence[str]) -> list[str]:
    """An always block: ``reset`` while rst, else ``body`` where ``condition`` holds."""
    lines = [f"        {line}" for line in body]
    head = [f"        {line}" for line in reset]
    between = f"    end else if ({condition}) begin"
    return ["always @(posedge clk)", "    if (rst) begin", *head, between, *lines, "    end"]


class LoopNest:
    """Counters of serial loops, the last the fastest, that advance when ``step`` holds."""

    def __init__(self, circuit: Circuit, loops: Sequence[Loop], step: str, prefix: str = "v") -> None:
        self._circuit, self.loops, self._step, self._prefix = circuit, tuple(loops), step, prefix
        reset, body = [], []
        for i, loop in enumerate(self.loops):
            circuit.declare(f"reg [{width(loop.extent) - 1}:0] {prefix}{i}")
            circuit.net(f"{prefix}{i}_last", f"{prefix}{i} == {loop.extent - 1}")
            reset.append(f"{prefix}{i} <= 0;")
            guard = " && ".join(f"{prefix}{j}_last" for j in range(i + 1, len(self.loops)))
            update = f"{prefix}{i} <= {prefix}{i}_last ? 0 : {prefix}{i} + 1'b1;"
            body.append(f"if ({guard}) {update}" if guard else update)
        if self.loops:
            circuit.lines += sequential(step, reset, body)
        self._sums: dict[tuple[tuple[str, int], ...], str] = {}

    def last(self, first: int) -> str:
        """Whether all loops from number ``first`` on are in their last step."""
        return " && ".join(f"{self._prefix}{i}_last" for i in range(first, len(self.loops))) or "1'b1"

    def running(self, name: str, index: Affine, bits: int, wrap: int = 0) -> str:
        """A register of ``bits`` bits that holds ``index``, modulo 2**bits, and gains ``wrap`` with every round."""
        k = [index.coefficients.get(loop.name, 0) for loop in self.loops]
        spans = [c * (loop.extent - 1) for c, loop in zip(k, self.loops, strict=True)]
        # From the outermost loop inwards: the step of the innermost loop that is not in its last step.
        text = _constant(wrap - sum(spans), bits)
        for i, _ in enumerate(self.loops):
            text = f"({self._prefix}{i}_last ? {text} : {_constant(k[i] - sum(spans[i + 1 :]), bits)})"
        self._circuit.declare(f"reg [{bits - 1}:0] {name}")
        update = f"{name} <= {name} + {text};"
        self._circuit.lines += sequential(self._step, [f"{name} <= {_constant(index.constant, bits)};"], [update])
        return name

    def test(self, condition: Affine, time: int = 0) -> Signal:
        """Whether ``condition`` is at least 0, one bit at ``time``."""
        low, high = self._range(condition)
        if low >= 0 or high < 0:
            return Signal("1'b1" if low >= 0 else "1'b0", Interval(-1, 0) if low >= 0 else Interval(0, 0), None)
        # x + k >= 0 and -x + k >= 0 share the counter of x.
        sign = 1 if condition.coefficients[min(condition.coefficients)] > 0 else -1
        counted = Affine(0, {name: sign * k for name, k in sorted(condition.coefficients.items())})
        key = tuple(counted.coefficients.items())
        if key not in self._sums:
            bits = Interval(*self._range(counted)).bits + 1
            self._sums[key] = self.running(f"{self._prefix}_at{len(self._sums)}", counted, bits)
        bound = literal(-sign * condition.constant).text
        return self._circuit.flag(f"$signed({self._sums[key]}) {'>=' if sign > 0 else '<='} {bound}", time)

    def _range(self, index: Affine) -> tuple[int, int]:
        ends = [index.coefficients.get(loop.name, 0) * (loop.extent - 1) for loop in self.loops]
        return index.constant + sum(min(e, 0) for e in ends), index.constant + sum(max(e, 0) for e in ends)


def _constant(value: int, bits: int) -> str:
    return f"{bits}'d{value % (1 << bits)}"


@dataclass(slots=True)
class Memories:
    """The read-only memories of a module: what one step of ``loops`` reads is one word.

    The words come in the order of the steps, so that an address is only counted up. Contents go to files.
    """

    module: str
    circuit: Circuit
    files: dict[str, str]
    arrays: Mapping[str, Array]
    loops: tuple[Loop, ...]
    step: str
    _lanes: dict[str, list[Affine]] = field(default_factory=dict)

    def load(self, name: str, index: Affine) -> Signal:
        """Element ``index`` of the constant ``name`` in the current step, valid one step later."""
        array = self.arrays[name].reshape(-1).astype(np.int64)
        if not index.coefficients:
            return literal(int(array[index.constant]))
        lanes = self._lanes.setdefault(name, [])
        if index not in lanes:
            lanes.append(index)
        codes = Interval(int(array.min()), int(array.max()))
        bits = stored_bits(codes)
        at = lanes.index(index) * bits
        part = f"{name}_word[{at + bits - 1}:{at}]"
        return Signal(f"$signed({part})" if codes.low < 0 else f"$signed({{1'b0, {part}}})", codes, 1)

    def finish(self) -> None:
        """Declare the memories, after everything has been loaded."""
        for name, lanes in self._lanes.items():
            array = self.arrays[name].reshape(-1).astype(np.int64)
            loops = max((relevant(i, self.loops) for i in lanes), key=len)
            bits = stored_bits(Interval(int(array.min()), int(array.max())))
            columns = [array[enumerate_index(i, loops)] for i in lanes]
            self._declare(name, bits * len(lanes), hex_words(columns, bits))

    def _declare(self, name: str, bits: int, words: list[str]) -> None:
        depth, file = len(words), f"{self.module}_{name}.mem"
        # One newline at the very end: some simulators drop a last word that has none.
        self.files[file] = "\n".join(words) + "\n"
        style = "block" if depth * bits > 4096 else "distributed"
        self.circuit.declare(
            f'(* rom_style = "{style}" *) reg [{bits - 1}:0] {name}_rom [0:{depth - 1}]',
            f"reg [{width(depth) - 1}:0] {name}_at",
            f"reg [{bits - 1}:0] {name}_word",
        )
        following = f"{name}_at <= {name}_at == {depth - 1} ? 0 : {name}_at + 1'b1;"
        self.circuit.lines += [
            f'initial $readmemh("{file}", {name}_rom);',
            f"always @(posedge clk) if (en) {name}_word <= {name}_rom[{name}_at];",
            *sequential(self.step, [f"{name}_at <= 0;"], [following]),
        ]


def stored_bits(codes: Interval) -> int:
    """Bits of an element in a memory or a stream: a sign only where it is needed."""
    return max(1, codes.bits - (codes.low >= 0))


def hex_words(columns: Sequence[Array], bits: int) -> list[str]:
    """Words of the elements side by side, the first in the lowest bits, as hexadecimal digits."""
    mask, digits = (1 << bits) - 1, -(-bits * len(columns) // 4)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [f"{sum((v & mask) << (i * bits) for i, v in enumerate(row)):0{digits}x}" for row in rows]
