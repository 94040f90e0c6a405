"""The whole network: stage modules, joined by forks, queues and gears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd

from qcc_targets.fpga.buffers import fork_pixels
from qcc_targets.fpga.folding import Folding, input_lanes, output_lanes, units
from qcc_targets.fpga.nests import build_nest
from qcc_targets.fpga.rtl.products import Ports
from qcc_targets.fpga.rtl.stage import Module, stage_module
from qcc_targets.fpga.stages import Concat, Dataflow, Stage, Stream, Windowed

SLACK = 8
"""Words that a branch of a fork holds beyond what its join makes it wait for: those under way in a pipeline."""


@dataclass(frozen=True, slots=True)
class Queue:
    """A FIFO of the design: what it carries, and the words that it can hold."""

    name: str
    bits: int
    words: int


@dataclass(frozen=True, slots=True)
class Boundary:
    """An input or output in words: ``lanes`` elements of ``bits`` bits each, ``words`` of them a frame."""

    bits: int
    lanes: int
    words: int

    @property
    def width(self) -> int:
        return self.bits * self.lanes


@dataclass(frozen=True, slots=True, eq=False)
class Design:
    """SystemVerilog of a network: ``text`` of all its modules but the fixed parts, and files of its memories."""

    text: str
    memories: Mapping[str, str]
    modules: tuple[Module, ...]
    queues: tuple[Queue, ...]
    inputs: tuple[Boundary, ...]
    outputs: tuple[Boundary, ...]


def write_network(network: Dataflow, foldings: Mapping[str, Folding], ports: Ports | None = None) -> Design:
    """The module ``qcc_network``; multipliers of ``ports`` are shared where that is exact. Raises TargetError."""
    return _Network(network, foldings, ports).write()


@dataclass(slots=True)
class _Link:
    """Nets that carry words of ``lanes`` elements of ``stream``."""

    prefix: str
    stream: Stream
    lanes: int

    @property
    def width(self) -> int:
        return self.lanes * self.stream.bits


@dataclass(slots=True)
class _Network:
    network: Dataflow
    foldings: Mapping[str, Folding]
    ports: Ports | None
    body: list[str] = field(default_factory=list)
    declared: list[str] = field(default_factory=list)
    queues: list[Queue] = field(default_factory=list)
    _count: int = 0

    def write(self) -> Design:
        network = self.network
        readers = network.readers()
        ends: dict[tuple[int, int], _Link] = {}
        inputs = []
        for i, port in enumerate(network.inputs):
            first, slot = readers[port.stream.name][0]
            lanes = self._lanes(network.stages[first], slot) if first < len(network.stages) else 1
            link = self._link(port.stream, lanes, f"in{i}")
            inputs.append(Boundary(port.stream.bits, lanes, port.stream.size // lanes))
            ends |= self._distribute(link, readers[port.stream.name])
        modules: list[Module] = []
        for number, stage in enumerate(network.stages):
            y = self._link(stage.output, output_lanes(stage, self.foldings[stage.name]), f"s{number}")
            xs = [self._fed(stage, slot, ends[number, slot]) for slot in range(len(stage.inputs))]
            modules += self._instance(number, stage, xs, y)
            if stage.name in readers:
                ends |= self._distribute(y, readers[stage.name])
            else:
                self.body.append(f"assign {y.prefix}_ready = 1'b1;")
        outputs = []
        for i, port in enumerate(network.outputs):
            link = ends[len(network.stages), i]
            outputs.append(Boundary(port.stream.bits, link.lanes, port.stream.size // link.lanes))
            self.body += [f"assign out{i}_data = {link.prefix}_data;", f"assign out{i}_valid = {link.prefix}_valid;"]
            self.body.append(f"assign {link.prefix}_ready = out{i}_ready;")
        text = "\n".join([*(m.text for m in modules), self._text(inputs, outputs)])
        memories = {name: words for m in modules for name, words in m.memories.items()}
        return Design(text, memories, tuple(modules), tuple(self.queues), tuple(inputs), tuple(outputs))

    def _lanes(self, stage: Stage, slot: int) -> int:
        return input_lanes(stage, self.foldings[stage.name], slot)

    def _link(self, stream: Stream, lanes: int, prefix: str = "") -> _Link:
        self._count += 1
        link = _Link(prefix or f"l{self._count}", stream, lanes)
        if not prefix.startswith("in"):
            self.declared += [f"wire [{link.width - 1}:0] {link.prefix}_data;"]
            self.declared += [f"wire {link.prefix}_valid, {link.prefix}_ready;"]
        return link

    def _distribute(self, link: _Link, readers: list[tuple[int, int]]) -> dict[tuple[int, int], _Link]:
        """A link for each reader."""
        if len(readers) == 1:
            return {readers[0]: link}
        count, name = len(readers), f"fork_{link.prefix}"
        self.declared.append(f"wire [{count - 1}:0] {name}_valid, {name}_ready;")
        self.declared.append(f"wire [{link.width - 1}:0] {name}_data;")
        self.body.append(
            f"qcc_fork #(.WIDTH({link.width}), .COUNT({count})) {name} (.x_data({link.prefix}_data), "
            f".x_valid({link.prefix}_valid), .x_ready({link.prefix}_ready), "
            f".y_data({name}_data), .y_valid({name}_valid), .y_ready({name}_ready));"
        )
        pixels = fork_pixels(self.network, link.stream.name)
        found = {}
        for i, reader in enumerate(readers):
            words = pixels[reader] * link.stream.channels // link.lanes + SLACK
            nets = f"{name}_data", f"{name}_valid[{i}]", f"{name}_ready[{i}]"
            found[reader] = self._queued(link, nets, words, f"queue_{link.prefix}_{i}")
        return found

    def _queued(self, link: _Link, nets: tuple[str, str, str], words: int, name: str) -> _Link:
        behind = self._link(link.stream, link.lanes)
        address = max(1, (words - 1).bit_length())
        self.queues.append(Queue(name, link.width, 1 << address))
        self.body.append(
            f"qcc_fifo #(.WIDTH({link.width}), .ADDRESS({address})) {name} (.clk(clk), .rst(rst), "
            f".x_data({nets[0]}), .x_valid({nets[1]}), .x_ready({nets[2]}), {_ports('y', behind)}, .level());"
        )
        return behind

    def _fed(self, stage: Stage, slot: int, link: _Link) -> _Link:
        """``link`` in words of as many elements as ``stage`` takes, behind a queue where words are popped."""
        lanes = self._lanes(stage, slot)
        common = gcd(link.lanes, lanes)
        for wanted in dict.fromkeys((common, lanes)):
            if wanted != link.lanes:
                behind = self._link(link.stream, wanted)
                self.body.append(
                    f"qcc_gear #(.BITS({link.stream.bits}), .IN({link.lanes}), .OUT({wanted})) gear_{behind.prefix} "
                    f"(.clk(clk), .rst(rst), {_ports('x', link)}, {_ports('y', behind)});"
                )
                link = behind
        if not (isinstance(stage, Windowed) and slot == 0):
            nets = f"{link.prefix}_data", f"{link.prefix}_valid", f"{link.prefix}_ready"
            link = self._queued(link, nets, max(2, self._burst(stage)), f"queue_{link.prefix}")
        return link

    def _burst(self, stage: Stage) -> int:
        """Words that ``stage`` pops in a row from what comes evenly spread: a residual's, once sums are complete."""
        folding = self.foldings[stage.name]
        return folding.pe // units(stage, folding) if isinstance(stage, Windowed) else 1

    def _instance(self, number: int, stage: Stage, xs: list[_Link], y: _Link) -> list[Module]:
        ports = ", ".join(_ports(f"x{i}", x) for i, x in enumerate(xs))
        if isinstance(stage, Concat):
            module = _concat_module(f"stage{number}", stage, y.lanes, y.stream.bits)
        else:
            module = stage_module(f"stage{number}", build_nest(stage, self.foldings[stage.name]), self.ports)
        self.body.append(f"{module.name} {module.name}_ (.clk(clk), .rst(rst), {ports}, {_ports('y', y)});")
        return [module]

    def _text(self, inputs: list[Boundary], outputs: list[Boundary]) -> str:
        ports = ["input wire clk", "input wire rst"]
        for i, b in enumerate(inputs):
            ports += [f"input wire [{b.width - 1}:0] in{i}_data, input wire in{i}_valid, output wire in{i}_ready"]
        for i, b in enumerate(outputs):
            ports += [f"output wire [{b.width - 1}:0] out{i}_data, output wire out{i}_valid, input wire out{i}_ready"]
        head = ["module qcc_network (", ",\n".join(f"    {p}" for p in ports), ");"]
        return "\n".join([*head, *(f"    {line}" for line in (*self.declared, *self.body)), "endmodule", ""])


def _ports(name: str, link: _Link) -> str:
    return ", ".join(f".{name}_{part}({link.prefix}_{part})" for part in ("data", "valid", "ready"))


def _concat_module(name: str, stage: Concat, lanes: int, bits: int) -> Module:
    """Takes the words of its inputs in turns, run by run; elements become as wide as the result's."""
    count, total = len(stage.inputs), sum(stage.runs) // lanes
    ports = ["input wire clk", "input wire rst"]
    for i, s in enumerate(stage.inputs):
        ports += [f"input wire [{s.bits * lanes - 1}:0] x{i}_data, input wire x{i}_valid, output wire x{i}_ready"]
    ports.append(f"output wire [{bits * lanes - 1}:0] y_data, output wire y_valid, input wire y_ready")
    at = max(1, (total - 1).bit_length())
    lines = [f"reg [{at - 1}:0] at;"]
    start, data, valid = 0, [], []
    for i, (s, run) in enumerate(zip(stage.inputs, stage.runs, strict=True)):
        stop = start + run // lanes
        above = [f"at >= {start}"] if start else []
        turn = " && ".join([*above, f"at < {stop}"] if i < count - 1 else above) or "1'b1"
        lines += [f"wire turn{i} = {turn};", f"assign x{i}_ready = turn{i} && y_ready;"]
        sign = f"x{i}_data[{{}}]" if s.signed else "1'b0"
        parts = []
        for lane in reversed(range(lanes)):
            top = (lane + 1) * s.bits - 1
            fill = f"{{{bits - s.bits}{{{sign.format(top)}}}}}, " if bits > s.bits else ""
            parts.append(f"{fill}x{i}_data[{top}:{lane * s.bits}]")
        data.append((f"turn{i}", f"{{{', '.join(parts)}}}"))
        valid.append(f"(turn{i} && x{i}_valid)")
        start = stop
    chosen = data[-1][1]
    for turn, word in reversed(data[:-1]):
        chosen = f"{turn} ? {word} : ({chosen})"
    lines += [
        f"assign y_data = {chosen};",
        f"assign y_valid = {' || '.join(valid)};",
        "always @(posedge clk)",
        "    if (rst) at <= 0;",
        f"    else if (y_valid && y_ready) at <= at == {total - 1} ? 0 : at + 1'b1;",
    ]
    head = [f"// concat {stage.name}", f"module {name} (", ",\n".join(f"    {p}" for p in ports), ");"]
    return Module(name, "\n".join([*head, *(f"    {line}" for line in lines), "endmodule", ""]), {})
