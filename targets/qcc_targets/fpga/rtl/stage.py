"""The module of one stage: its loops, its arithmetic and its handshakes.

Every module has the ports ``clk``, ``rst``, ``x0_data/_valid/_ready`` …, ``y_data/_valid/_ready``. A word moves
where valid and ready meet. All registers of the arithmetic move together while ``en`` holds, which is
false only while an output word waits to be taken, or an epilogue for its residual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qcc.errors import TargetError
from qcc.ir.bounds import Interval
from qcc_targets.fpga.folding import input_lanes, output_lanes
from qcc_targets.fpga.nests import Nest
from qcc_targets.fpga.rtl.circuit import Circuit, Signal
from qcc_targets.fpga.rtl.counters import LoopNest, Memories, hex_words, sequential, stored_bits, width
from qcc_targets.fpga.rtl.expression import Expressions, Load
from qcc_targets.fpga.rtl.products import Ports, encode_powers, multiply_all, powers_of_two, shift_by
from qcc_targets.fpga.rtl.tensorir import Affine, Store, enumerate_index, relevant, stores
from qcc_targets.fpga.rtl.updates import adds, factors, increment, is_start
from qcc_targets.fpga.rtl.window import plan_window
from qcc_targets.fpga.stages import Contraction, Lookup, Pool, Reduce, Stream, Windowed


@dataclass(frozen=True, slots=True)
class Module:
    """SystemVerilog of a stage; ``memories`` are files beside it."""

    name: str
    text: str
    memories: Mapping[str, str]


def stage_module(name: str, nest: Nest, ports: Ports | None = None) -> Module:
    """The module ``name`` that computes ``nest``; multipliers of ``ports`` are shared. Raises TargetError."""
    found = stores(nest.func)
    results = [s for s in found if s.buffer == "y"]
    sums = [s for s in found if s.buffer == "acc"]
    starts, updates = [s for s in sums if is_start(s)], [s for s in sums if not is_start(s)]
    if isinstance(nest.stage, (Contraction, Pool)) and not updates:
        raise TargetError(f"{nest.stage.op} %{nest.stage.name}: its windows read nothing but padding; fold its result")
    writer = _Writer(name, nest, ports)
    if isinstance(nest.stage, Reduce):
        writer.reduction(starts, updates, results)
    elif updates:
        writer.accumulation(starts, updates, results)
    else:
        writer.direct(results)
    return Module(name, writer.text(), writer.files)


@dataclass(slots=True)
class _Writer:
    name: str
    nest: Nest
    ports: Ports | None
    files: dict[str, str] = field(default_factory=dict)
    circuit: Circuit = field(default_factory=Circuit)

    # Shapes of modules

    def direct(self, results: Sequence[Store]) -> None:
        """Each step makes one output word."""
        c, stage, loops = self.circuit, self.nest.stage, results[0].loops
        c.net("en", "!y_valid || y_ready")
        steps = LoopNest(c, loops, "go")
        if isinstance(stage, Windowed):
            c.net("go", "en && window_ready")
            read = self._window(stage, steps)
        else:
            slots = range(len(stage.inputs))
            c.net("go", f"en && {' && '.join(f'x{i}_valid' for i in slots)}")
            c.lines += [f"assign x{i}_ready = go;" for i in slots]
            read = self._popped
        memories = self._memories(steps, "go")
        self._finish(results, "go", read, memories, steps)

    def accumulation(self, starts: Sequence[Store], updates: Sequence[Store], results: Sequence[Store]) -> None:
        """Sums over the reduction loops, then their epilogue in shares."""
        c, stage, loops, shared = self.circuit, self.nest.stage, updates[0].loops, results[0].loops
        if not isinstance(stage, Windowed):
            raise TargetError(f"{stage.op} %{stage.name}: only windows are summed in this way")
        common = sum(1 for a, b in zip(loops, shared, strict=False) if a == b)
        shares = shared[common].extent if len(shared) > common else 1
        steps = LoopNest(c, loops, "go")
        c.net("go", "en && window_ready")
        memories = self._memories(steps, "go")
        totals, time = self._sums(starts, updates, self._window(stage, steps), memories, steps)
        memories.finish()
        c.declare("reg at_first")
        c.net("at_last", steps.last(common))
        c.lines += sequential("go", ["at_first <= 1'b1;"], ["at_first <= at_last;"])
        valid, first, last = (self._follow(f, time) for f in ("go", "at_first", "at_last"))
        c.net("load", f"{valid} && {last}")
        bound = self._accumulator()
        for i, total in enumerate(totals):
            joined = self._joined(updates, f"acc{i}", total)
            c.declare(f"reg signed [{bound.bits - 1}:0] acc{i}, held{i}")
            c.net(f"next{i}", f"{first} ? {total} : {joined}", bound.bits, signed=True)
            c.clocked += [f"if ({valid}) acc{i} <= next{i};", f"if (load) held{i} <= next{i};"]
        self._shares(shares)
        residual = len(stage.inputs) > 1
        if residual:
            # All of the stage stands still meanwhile, the word at its output too: the sink may take it only once.
            c.net("starved", "busy && !x1_valid")
            c.net("en", "(!y_valid || y_ready) && !starved")
            c.lines.append("assign x1_ready = en && busy;")
        else:
            c.net("en", "!y_valid || y_ready")
        side = len(totals) // shares

        def held(buffer: str, index: Affine) -> Signal:
            if buffer != "acc":
                return self._popped(buffer, index)
            text = f"held{index.constant}"
            for j in range(1, shares):
                text = f"share_at == {j} ? held{index.constant + j * side} : ({text})"
            return c.wire(text, bound, 0)

        outer = LoopNest(Circuit(), shared, "share")
        self._finish(results, "share", held, self._memories(outer, "share"), None, waits=residual)

    def reduction(self, starts: Sequence[Store], updates: Sequence[Store], results: Sequence[Store]) -> None:
        """Every pixel is added to the sums of its channels as it comes; behind the last one, the sums go out."""
        c, stage = self.circuit, self.nest.stage
        lanes, pixels = len(updates), stage.inputs[0].pixels
        words = stage.inputs[0].channels // lanes
        bound = self._accumulator()
        c.declare(f"reg [{width(pixels) - 1}:0] pixel", f"reg [{width(words) - 1}:0] word", "reg draining")
        c.net("en", "!y_valid || y_ready")
        c.net("go", "en && !draining && x0_valid")
        c.net("drain", "en && draining")
        body = [
            f"word <= word == {words - 1} ? 0 : word + 1'b1;",
            f"if (word == {words - 1} && draining) draining <= 1'b0;",
            f"if (word == {words - 1} && !draining) pixel <= pixel == {pixels - 1} ? 0 : pixel + 1'b1;",
            f"if (word == {words - 1} && !draining && pixel == {pixels - 1}) draining <= 1'b1;",
        ]
        c.lines.append("assign x0_ready = en && !draining;")
        c.lines += sequential("go || drain", ["pixel <= 0;", "word <= 0;", "draining <= 1'b0;"], body)
        self._neutral(starts, updates)
        terms = Expressions(c, self._popped, _untested)
        for i, update in enumerate(updates):
            total = increment(update, terms).text
            c.declare(f"reg signed [{bound.bits - 1}:0] acc{i} [0:{words - 1}]")
            c.net(f"old{i}", f"acc{i}[word]", bound.bits, signed=True)
            joined = self._joined(updates, f"old{i}", total)
            c.clocked.append(f"if (go) acc{i}[word] <= pixel == 0 ? {total} : {joined};")

        def held(buffer: str, index: Affine) -> Signal:
            return Signal(f"old{index.constant % lanes}", bound, 0)

        drained = LoopNest(Circuit(), results[0].loops, "drain")
        self._finish(results, "drain", held, self._memories(drained, "drain"), None)

    # Parts of modules

    def _memories(self, steps: LoopNest, step: str) -> Memories:
        arrays = dict(self.nest.constants)
        if self._shifts:
            arrays["w"] = encode_powers(arrays["w"])
        return Memories(self.name, self.circuit, self.files, arrays, steps.loops, step)

    @property
    def _shifts(self) -> bool:
        """Whether weights are powers of two, and shifts take the place of multipliers."""
        return isinstance(self.nest.stage, Contraction) and powers_of_two(self.nest.stage.weights)

    def _shares(self, count: int) -> None:
        """``share`` holds while held sums go into the epilogue; ``share_at`` says which part of them."""
        c = self.circuit
        c.declare("reg busy", f"reg [{width(count) - 1}:0] share_at")
        c.net("share", "en && busy")
        body = [
            "if (load) busy <= 1'b1;",
            f"else if (share_at == {count - 1}) busy <= 1'b0;",
            f"if (busy) share_at <= share_at == {count - 1} ? 0 : share_at + 1'b1;",
        ]
        c.lines += sequential("en", ["busy <= 1'b0;", "share_at <= 0;"], body)

    def _sums(
        self, starts: Sequence[Store], updates: Sequence[Store], read: Load, memories: Memories, steps: LoopNest
    ) -> tuple[list[str], int]:
        """For each accumulator what one step adds to it, and when that is valid."""
        self._neutral(starts, updates)
        values = Expressions(self.circuit, _by_kind(read, memories), steps.test)
        if isinstance(self.nest.stage, Contraction):
            terms = self._products(self.nest.stage, updates, values)
        else:
            terms = {u.index.constant: [increment(u, values)] for u in updates}
        operation = "add" if adds(updates) else "maximum"
        totals = [self.circuit.register(self.circuit.tree(terms[i], operation)) for i in range(len(terms))]
        totals, time = self.circuit.together(totals)
        return [t.text for t in totals], 1 if time is None else time

    def _products(self, stage: Contraction, updates: Sequence[Store], values: Expressions) -> dict[int, list[Signal]]:
        """By accumulator, the products of a step; those of one code are made together."""
        c = self.circuit
        weights = Interval(int(stage.weights.min()), int(stage.weights.max()))
        shared: dict[str, tuple[Signal, list[tuple[int, Signal]]]] = {}
        for update in updates:
            code, weight = factors(update)
            own = {k: v for k, v in update.unrolled.items() if re.search(rf"\b{k}\b", str(code))}
            key = f"{code} {own}"
            if key not in shared:
                shared[key] = values.value(code, own), []
            shared[key][1].append((update.index.constant, values.value(weight, update.unrolled)))
        terms: dict[int, list[Signal]] = {}
        for code, several in shared.values():
            found = [w for _, w in several]
            products = (
                [shift_by(c, code, w, weights) for w in found]
                if self._shifts
                else multiply_all(c, code, found, self.ports)
            )
            for (accumulator, _), product in zip(several, products, strict=True):
                terms.setdefault(accumulator, []).append(product)
        return terms

    def _joined(self, updates: Sequence[Store], sum_: str, term: str) -> str:
        return f"{sum_} + {term}" if adds(updates) else f"({sum_} > {term} ? {sum_} : {term})"

    def _neutral(self, starts: Sequence[Store], updates: Sequence[Store]) -> None:
        """Accumulators here begin with their first term: check that where they are said to begin changes nothing."""
        for start in starts:
            value = int(start.value.value)
            if value != 0 if adds(updates) else value > -(1 << 31):
                raise TargetError(f"an accumulation that begins with {value} has no hardware")

    def _accumulator(self) -> Interval:
        """What complete sums can be; arithmetic modulo the width of that is exact."""
        stage: Any = self.nest.stage
        bound: Interval = stage.accumulator
        return bound

    def _window(self, stage: Windowed, steps: LoopNest) -> Load:
        """An instance of the line buffer; returns how its words are read."""
        c, x = self.circuit, stage.x
        lanes = input_lanes(stage, self.nest.folding, 0)
        plan = plan_window(stage, lanes)
        pixel_loops = (stage.output.height > 1) + (stage.output.width > 1)
        c.declare("wire window_ready", f"wire [{x.bits * lanes - 1}:0] window_word")
        c.net("window_done", f"go && {steps.last(pixel_loops)}")
        seen: list[Affine] = []

        def read(buffer: str, index: Affine) -> Signal:
            lane = index.constant % lanes
            word = Affine(index.constant - lane, index.coefficients)
            if not seen:
                seen.append(word)
                scaled = Affine(word.constant // lanes, {n: k // lanes for n, k in word.coefficients.items()})
                steps.running("window_at", scaled, plan.address, plan.frame)
                c.lines.append(plan.instance(x.bits * lanes))
            if word != seen[0] or any(k % lanes for k in word.coefficients.values()):
                raise TargetError(f"{stage.op} %{stage.name}: its folding reads across words of its input")
            return self._unpacked("window_word", lane, x, 1)

        return read

    def _popped(self, buffer: str, index: Affine) -> Signal:
        """An element of the word that waits at an input."""
        slot = int(buffer[1:])
        lanes = input_lanes(self.nest.stage, self.nest.folding, slot)
        return self._unpacked(f"x{slot}_data", index.constant % lanes, self.nest.stage.inputs[slot], 0)

    def _unpacked(self, word: str, lane: int, stream: Stream, time: int) -> Signal:
        part = f"{word}[{(lane + 1) * stream.bits - 1}:{lane * stream.bits}]"
        text = f"$signed({part})" if stream.signed else f"$signed({{1'b0, {part}}})"
        return self.circuit.wire(text, stream.codes, time)

    def _finish(
        self,
        results: Sequence[Store],
        step: str,
        read: Load,
        memories: Memories,
        steps: LoopNest | None,
        *,
        waits: bool = False,
    ) -> None:
        """The output word: all results of a step, registered once more; not offered while ``starved``, if it waits."""
        c, bits = self.circuit, self.nest.stage.output.bits
        loops = memories.loops
        table = _Tables(self, step, loops)
        values = Expressions(c, _by_kind(read, memories), steps.test if steps else _untested, table.entry)
        signals = [c.register(values.value(s.value, s.unrolled)) for s in results]
        signals, found = c.together(signals)
        time = 1 if found is None else found
        memories.finish()
        parts = ", ".join(f"{bits}'({s.text})" for s in reversed(signals))
        c.lines.append(f"assign y_data = {{{parts}}};")
        ready = self._follow(step, time)
        c.lines.append(f"assign y_valid = {ready}{' && !starved' if waits else ''};")

    def _follow(self, text: str, time: int) -> str:
        """A bit, ``time`` steps later; none is set after a reset."""
        c, name = self.circuit, f"{text}_{time}"
        c.declare(f"reg [{time - 1}:0] {name}")
        shifted = f"{{{name}[{time - 2}:0], {text}}}" if time > 1 else text
        c.lines += sequential("en", [f"{name} <= 0;"], [f"{name} <= {shifted};"])
        return f"{name}[{time - 1}]"

    def text(self) -> str:
        stage, folding, c = self.nest.stage, self.nest.folding, self.circuit
        ports = ["input wire clk", "input wire rst"]
        for i, s in enumerate(stage.inputs):
            wide = s.bits * input_lanes(stage, folding, i)
            ports += [f"input wire [{wide - 1}:0] x{i}_data", f"input wire x{i}_valid", f"output wire x{i}_ready"]
        wide = stage.output.bits * output_lanes(stage, folding)
        ports += [f"output wire [{wide - 1}:0] y_data", "output wire y_valid", "input wire y_ready"]
        lines = [f"// {stage.op} {stage.name}: pe {folding.pe}, simd {folding.simd}", f"module {self.name} ("]
        lines += [",\n".join(f"    {p}" for p in ports), ");"]
        lines += [f"    {line}" for line in (*c.declared, *c.lines)]
        if c.clocked:
            lines += ["    always @(posedge clk) if (en) begin", *(f"        {line}" for line in c.clocked), "    end"]
        return "\n".join([*lines, "endmodule", ""])


@dataclass(slots=True)
class _Tables:
    """Tables of a lookup, a copy for each lane."""

    writer: _Writer
    step: str
    loops: Sequence[Any]
    count: int = 0

    def entry(self, code: Signal, row: Affine) -> Signal:
        """The entry for ``code`` in row ``row``, one step later."""
        writer, c = self.writer, self.writer.circuit
        stage, name = writer.nest.stage, f"table{self.count}"
        if not isinstance(stage, Lookup) or code.time is None:
            raise TargetError(f"{stage.op} %{stage.name}: reads at a place that is not affine")
        self.count += 1
        columns = 1 << max(1, code.codes.high.bit_length())
        rows = enumerate_index(row, relevant(row, self.loops))
        array = stage.table[rows][:, :columns]
        array = np.pad(array, ((0, 0), (0, columns - array.shape[1])))
        codes = Interval(int(array.min()), int(array.max()))
        bits, file = stored_bits(codes), f"{writer.name}_{name}.mem"
        writer.files[file] = "\n".join(hex_words([array.reshape(-1)], bits)) + "\n"
        index = f"{code.text}[{columns.bit_length() - 2}:0]"
        if len(rows) > 1:
            c.declare(f"reg [{width(len(rows)) - 1}:0] {name}_row")
            following = f"{name}_row <= {name}_row == {len(rows) - 1} ? 0 : {name}_row + 1'b1;"
            c.lines += sequential(self.step, [f"{name}_row <= 0;"], [following])
            index = f"{{{name}_row, {index}}}"
        c.declare(f"reg [{bits - 1}:0] {name} [0:{array.size - 1}]", f"reg [{bits - 1}:0] {name}_word")
        c.lines.append(f'initial $readmemh("{file}", {name});')
        c.clocked.append(f"{name}_word <= {name}[{index}];")
        word = f"{name}_word" if codes.low < 0 else f"{{1'b0, {name}_word}}"
        return Signal(f"$signed({word})", codes, code.time + 1)


def _by_kind(read: Load, memories: Memories) -> Load:
    """Streams and sums through ``read``, constants from memories."""

    def load(buffer: str, index: Affine) -> Signal:
        return memories.load(buffer, index) if buffer in memories.arrays else read(buffer, index)

    return load


def _untested(condition: Affine) -> Signal:
    raise TargetError(f"a condition {condition} in an epilogue has no hardware")
