"""One stage as an HLS C++ function, from the same scheduled TensorIR function as its hardware.

The function reads streams where TensorIR reads arrays: elements wait in a ring of the rows that a window
spans, and are taken as soon as a pixel needs them. Results leave in words of as many lanes as are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final

from qcc.ir.bounds import Interval
from qcc_targets.c.emit import FunctionEmitter
from qcc_targets.fpga.nests import Nest
from qcc_targets.fpga.stages import Concat, Contraction, Pool, Reduce, Stage, Stream, Windowed

_UNROLLED: Final = 3
"""TensorIR's kind of an unrolled loop."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """Lanes of each input's words, those of the output's, and how many readers the output has."""

    inputs: tuple[int, ...]
    output: int
    readers: int


def word(stream: Stream, lanes: int) -> str:
    """The C++ type of what ``stream`` carries in a cycle."""
    return f"qcc_word<{_element(stream.codes)}, {lanes}>"


def nest_function(nest: Nest, wiring: Wiring, name: str, helpers: set[str]) -> str:
    """``static void name(x0, …, y0, …)``; ``helpers`` collects the support functions that it calls."""
    note = f", PE {nest.folding.pe}, SIMD {nest.folding.simd}"
    lines = _StageEmitter(helpers, nest=nest, wiring=wiring).lines()
    return "\n".join([*_head(nest.stage, wiring, name, note), *lines, "}"])


def concat_function(stage: Concat, wiring: Wiring, name: str) -> str:
    """The same for a concatenation, which moves elements only."""
    lines = [f"    {word(s, n)} x{i}_word;" for i, (s, n) in enumerate(zip(stage.inputs, wiring.inputs, strict=True))]
    lines += [f"    int x{i}_lane = 0;" for i in range(len(stage.inputs))]
    lines += [f"    {word(stage.output, wiring.output)} y_word;", "    int y_lane = 0;"]
    lines += [f"    for (int outer = 0; outer < {stage.outer}; ++outer) {{"]
    for i, (run, lanes) in enumerate(zip(stage.runs, wiring.inputs, strict=True)):
        lines += [
            f"        for (int i = 0; i < {run}; ++i) {{",
            "#pragma HLS PIPELINE II=1",
            f"            if (x{i}_lane == 0) x{i}_word = x{i}.read();",
            f"            y_word.lane[y_lane] = x{i}_word.lane[x{i}_lane];",
            f"            x{i}_lane = x{i}_lane + 1 == {lanes} ? 0 : x{i}_lane + 1;",
            f"            if (++y_lane == {wiring.output}) {{",
            "                y_lane = 0;",
            *(f"                y{k}.write(y_word);" for k in range(wiring.readers)),
            "            }",
            "        }",
        ]
    return "\n".join([*_head(stage, wiring, name, ""), *lines, "    }", "}"])


def port(stream: Stream, lanes: int, name: str) -> str:
    """The declaration of a stream as a parameter."""
    return f"qcc_stream<{word(stream, lanes)}> &{name}"


def _head(stage: Stage, wiring: Wiring, name: str, note: str) -> Iterator[str]:
    ins = [port(s, n, f"x{i}") for i, (s, n) in enumerate(zip(stage.inputs, wiring.inputs, strict=True))]
    outs = [port(stage.output, wiring.output, f"y{i}") for i in range(wiring.readers)]
    yield f"/* {stage.op} {stage.name}: {' x '.join(map(str, stage.output.shape))}{note} */"
    yield f"static void {name}({', '.join([*ins, *outs])})"
    yield "{"


def _element(codes: Interval) -> str:
    """The C++ integer of exactly the width of ``codes``."""
    return f"qcc_int<{codes.bits}>" if codes.low < 0 else f"qcc_uint<{max(1, codes.bits - 1)}>"


@dataclass(slots=True)
class _StageEmitter(FunctionEmitter):
    nest: Nest = field(kw_only=True)
    wiring: Wiring = field(kw_only=True)
    _sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _pixel: tuple[str, str] = ("0", "0")
    _waiting: set[str] = field(default_factory=set)
    _serial: int = 0

    @property
    def stage(self) -> Stage:
        return self.nest.stage

    def lines(self) -> list[str]:
        """The function's body."""
        for parameter in self.nest.func.params:
            self._declare(parameter)
        found = next(_accesses(self.nest.func.body, "x0" if isinstance(self.stage, Reduce) else "y"))
        row, column = (self._expr(i) for i in list(found.indices)[:2])
        self._pixel, self._waiting = (row, column), {v for v in (row, column) if not v.isdigit()}
        if not self._waiting:
            self._take_pixel(1)
        self._statement(self.nest.func.body, 1)
        for slot, stream in enumerate(self.stage.inputs):
            self._take(1, slot, str(stream.size))
        computed, self._lines = self._lines, []
        self._declarations("\n".join(computed))
        return [*self._lines, *computed]

    def _declarations(self, body: str) -> None:
        """Constants that ``body`` reads, rings, and the word under construction."""
        for name, array in self.nest.constants.items():
            if f"{name}[" in body:
                values = ", ".join(map(str, array.flat))
                self._line(1, f"static const {array.dtype.name}_t {name}[{array.size}] = {{{values}}};")
        for slot, stream in enumerate(self.stage.inputs):
            size = self._ring(slot) * stream.width * stream.channels
            self._line(1, f"{_element(stream.codes)} x{slot}_line[{size}];")
            self._partition(f"x{slot}_line", max(self.nest.folding.simd, self.wiring.inputs[slot]))
            self._line(1, f"int x{slot}_at = 0, x{slot}_taken = 0;")
        self._line(1, f"{word(self.stage.output, self.wiring.output)} y_word;")

    def _declare(self, buffer: Any) -> None:
        self._sizes[self._name(buffer)] = tuple(map(int, buffer.shape))

    def _partition(self, name: str, lanes: int) -> None:
        if lanes > 1:
            self._lines.append(f"#pragma HLS ARRAY_PARTITION variable={name} cyclic factor={lanes}")

    # Streams

    def _ring(self, slot: int) -> int:
        """Rows that wait: those a window spans, rounded up to a power of two; at most all.

        One more where words cross the borders of pixels, and so bring elements that are not needed yet.
        """
        stream, rows = self.stage.inputs[slot], 1
        if isinstance(self.stage, Windowed) and slot == 0:
            rows = (self.stage.window.kernel[0] - 1) * self.stage.window.dilations[0] + 1
        rows += stream.channels % self.wiring.inputs[slot] > 0
        return int(min(1 << (rows - 1).bit_length(), stream.height))

    def _take_pixel(self, depth: int) -> None:
        for slot, stream in enumerate(self.stage.inputs):
            row, column = self._pixel
            if isinstance(self.stage, Windowed) and slot == 0:
                row, column = self._corner(row, 0, stream.height), self._corner(column, 1, stream.width)
            self._take(depth, slot, f"({row} * {stream.width} + {column} + 1) * {stream.channels}")

    def _corner(self, place: str, axis: int, extent: int) -> str:
        """The last row or column of the pixel's window."""
        window = self.stage.window  # type: ignore[attr-defined]
        last = (window.kernel[axis] - 1) * window.dilations[axis] - window.pads[axis]
        return f"qcc_last({place} * {window.strides[axis]} + {last}, {extent})"

    def _take(self, depth: int, slot: int, until: str) -> None:
        self._line(depth, f"qcc_take(x{slot}, x{slot}_line, x{slot}_at, x{slot}_taken, {until});")

    # TensorIR

    def _stmt_For(self, stmt: Any, depth: int) -> None:  # noqa: N802 - named after TensorIR's nodes
        variable, extent = self._name(stmt.loop_var), self._expr(stmt.extent)
        self._line(depth, f"for (int {variable} = 0; {variable} < {extent}; ++{variable}) {{")
        start, unrolled = len(self._lines), int(stmt.kind) == _UNROLLED
        self._serial += not unrolled
        before = self._serial
        waited = bool(self._waiting)
        self._waiting.discard(variable)
        if waited and not self._waiting:
            self._take_pixel(depth + 1)
            before = -1
        self._statement(stmt.body, depth + 1)
        if unrolled:
            self._lines.insert(start, "#pragma HLS UNROLL")
        elif self._serial == before:
            self._lines.insert(start, "#pragma HLS PIPELINE II=1")
        self._line(depth, "}")

    def _stmt_AllocBuffer(self, stmt: Any, depth: int) -> None:  # noqa: N802
        name = self._name(stmt.buffer)
        self._declare(stmt.buffer)
        self._line(depth, f"{self._accumulator(stmt.buffer)} {name}[{prod(self._sizes[name])}];")
        self._partition(name, self.nest.folding.pe)

    def _accumulator(self, buffer: Any) -> str:
        """Sums are exact modulo the width of the complete ones; a maximum begins below all codes."""
        if isinstance(self.stage, Contraction) or (isinstance(self.stage, (Pool, Reduce)) and self.stage.kind == "sum"):
            return f"qcc_int<{self.stage.accumulator.with_zero().bits}>"
        return f"{buffer.dtype}_t"

    def _stmt_BufferStore(self, stmt: Any, depth: int) -> None:  # noqa: N802
        name, value, lanes = self._name(stmt.buffer), self._expr(stmt.value), self.wiring.output
        if name != "y":
            self._line(depth, f"{name}[{self._flat(name, stmt.indices)}] = {value};")
            return
        lane = f"({self._expr(stmt.indices[-1])}) % {lanes}" if lanes > 1 else "0"
        self._line(depth, f"y_word.lane[{lane}] = {value};")
        writes = " ".join(f"y{k}.write(y_word);" for k in range(self.wiring.readers))
        self._line(depth, f"if ({lane} == {lanes - 1}) {{ {writes} }}" if lanes > 1 else writes)

    def _stmt_Evaluate(self, stmt: Any, depth: int) -> None:  # noqa: N802
        if type(stmt.value).__name__ != "IntImm":
            FunctionEmitter._stmt_Evaluate(self, stmt, depth)

    def _load(self, expr: Any) -> str:
        name = self._name(expr.source)
        if not name.startswith("x"):
            return f"{name}[{self._flat(name, expr.indices)}]"
        place = self._flat(name, expr.indices, self._ring(int(name[1:])))
        return f"({expr.source.dtype}_t){name}_line[{place}]"

    def _shift_right(self, expr: Any) -> str:
        """Arithmetic, as every C++ compiler has it (and C++20 demands)."""
        return f"({self._expr(expr.a)} >> {self._expr(expr.b)})"

    def _flat(self, name: str, indices: Any, ring: int | None = None) -> str:
        """The place in a dense array, or in a ring of ``ring`` rows."""
        sizes, parts = self._sizes[name], [self._expr(i) for i in indices]
        if ring is not None and ring < sizes[0]:
            parts[0] = "0" if ring == 1 else f"({parts[0]} & {ring - 1})"
        text = parts[0]
        for size, part in zip(sizes[1:], parts[1:], strict=True):
            text = part if text == "0" else f"({text}) * {size}" + ("" if part == "0" else f" + {part}")
        return text


def _accesses(node: Any, name: str) -> Iterator[Any]:
    """Loads from and stores to the buffer ``name`` below ``node``, in order."""
    kind = type(node).__name__
    if kind == "SeqStmt":
        for part in node.seq:
            yield from _accesses(part, name)
    elif kind == "For":
        yield from _accesses(node.body, name)
    elif kind == "BufferStore":
        if node.buffer.name == name:
            yield node
        yield from _loads(node.value, name)


def _loads(expr: Any, name: str) -> Iterator[Any]:
    if type(expr).__name__ == "TensorLoad" and expr.source.name == name:
        yield expr
    children = [getattr(expr, key, None) for key in ("a", "b", "value", "condition", "true_value", "false_value")]
    for child in [*children, *getattr(expr, "args", ())]:
        if child is not None and not isinstance(child, (int, str)):
            yield from _loads(child, name)
