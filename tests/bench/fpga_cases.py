"""Small integer graphs, each around one thing that streaming hardware must get right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.graph import Stage as IrStage
from qcc.ir.types import BATCH, DTYPES, Dyadic, Quant
from qcc_targets.fpga.folding import Folding, cycles, legal
from qcc_targets.fpga.stages import Dataflow, Stage

Array = NDArray[Any]


def grid(zero_point: int = 3, bits: int = 8, signed: bool = False) -> Quant:
    return Quant(bits, signed, (Dyadic.of(0.05),), zero_point)


@dataclass
class Net:
    """A graph under construction."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("net", IrStage.INTEGER))

    def x(self, *shape: int, quant: Quant | None = None) -> Value:
        quant = quant or grid()
        return self.builder.input("x", (BATCH, *shape), quant.dtype, quant)

    def requant(self, kind: str, xs: list[Value], sums: float, quant: Quant, outputs: int = 1, **attrs: Any) -> Value:
        """An operation whose sums of about ``sums`` land on some dozen codes of ``quant``."""
        b, rng = self.builder, self.rng
        scale = (1 << quant.bits) / 3 / sums * 2**24
        m = np.clip(rng.uniform(0.4, 1.0, outputs) * scale, 1, 2**31 - 1).astype(np.int32)
        c = rng.integers(0, (1 << quant.bits) << 23, outputs).astype(np.int64) + (quant.qmin << 24)
        extra = [b.constant(m, "m"), b.constant(c, "c")]
        if len(xs) == 3:
            extra += [xs.pop(), b.constant(np.array([1 << 22], np.int32), "mr")]
        clamp: dict[str, Any] = {"shift": 24, "qmin": quant.qmin, "qmax": quant.qmax}
        return b.op(kind, [*xs, *extra], name="y", quant=quant, **clamp, **attrs)

    def conv(
        self,
        x: Value,
        outputs: int,
        kernel: tuple[int, int] = (3, 3),
        *,
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilations: tuple[int, int] = (1, 1),
        groups: int = 1,
        bits: int = 8,
        quant: Quant | None = None,
        residual: Value | None = None,
        weights: Array | None = None,
    ) -> Value:
        depth = x.type.shape[1] // groups
        shape = (outputs, depth, *kernel)
        half = 1 << (bits - 1)
        codes = self.rng.integers(-half, half, shape) if weights is None else weights
        w = self.builder.constant(codes.astype(np.int8), "w", quant=grid(0, bits, True))
        sums = float(np.sqrt(depth * kernel[0] * kernel[1])) * half * 80
        attrs: dict[str, Any] = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
        operands = [x, w] if residual is None else [x, w, residual]
        return self.requant("iconv2d", operands, sums, quant or grid(), outputs, **attrs)

    def dense(self, x: Value, outputs: int, quant: Quant | None = None) -> Value:
        w = self.builder.constant(self.rng.integers(-128, 128, (outputs, x.type.shape[-1])).astype(np.int8), "w")
        return self.requant("idense", [x, w], float(np.sqrt(x.type.shape[-1])) * 8000, quant or grid(), outputs)

    def reduce(self, x: Value, quant: Quant | None = None) -> Value:
        b, pixels = self.builder, x.type.shape[2] * x.type.shape[3]
        m, c = np.array([(1 << 24) // pixels], np.int32), np.array([1 << 23], np.int64)
        quant = quant or grid(0)
        clamp: dict[str, Any] = {"shift": 24, "qmin": quant.qmin, "qmax": quant.qmax}
        operands = [x, b.constant(m, "m"), b.constant(c, "c")]
        return b.op("ireduce_sum", operands, name="mean", quant=quant, axes=(2, 3), keepdims=True, **clamp)

    def pool(self, x: Value, pads: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Value:
        attrs: dict[str, Any] = {"kernel": (2, 2), "strides": (2, 2), "pads": pads, "dilations": (1, 1)}
        return self.builder.op("max_pool2d", [x], name="pool", quant=x.type.quant, **attrs)

    def linear(self, *xs: Value, per_channel: bool = False) -> Value:
        """The sum of ``xs``, each times about 1 / len(xs)."""
        b, quant = self.builder, grid(5)
        shape = (xs[0].type.shape[1], 1, 1) if per_channel else (1,)
        pairs = []
        for x in xs:
            m = (self.rng.uniform(-1, 1, shape) * (1 << 24) / len(xs)).astype(np.int32)
            pairs += [x, b.constant(m, "m")]
        c = b.constant(np.array([(60 << 24) + (1 << 23)], np.int64), "c")
        clamp: dict[str, Any] = {"shift": 24, "qmin": quant.qmin, "qmax": quant.qmax}
        return b.op("ilinear", [c, *pairs], name="sum", quant=quant, **clamp)

    def table(self, x: Value, rows: int = 1) -> Value:
        codes = self.rng.integers(0, 256, (rows, 256) if rows > 1 else 256).astype(np.uint8)
        return self.builder.op("ilookup", [x, self.builder.constant(codes, "table")], name="table", quant=grid())


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Net], Value | list[Value]]

    def build(self, samples: int, seed: int = 3) -> tuple[Graph, dict[str, Array]]:
        """The graph, and random codes for its inputs."""
        net = Net()
        outputs = self.make(net)
        graph = net.builder.graph(outputs if isinstance(outputs, list) else [outputs])
        return graph, _codes(graph, samples, seed)


def _residual(net: Net) -> Value:
    x = net.conv(net.x(2, 5, 6), 4)
    y = net.conv(x, 4, bits=4)
    return net.conv(y, 4, residual=x)


def _projected(net: Net) -> Value:
    """A residual whose short cut has a stride, and so drops pixels."""
    x = net.conv(net.x(2, 6, 6), 4)
    short = net.conv(x, 6, (1, 1), strides=(2, 2), pads=(0, 0, 0, 0), quant=grid(91))
    y = net.conv(x, 6, strides=(2, 2), pads=(0, 0, 1, 1))
    return net.conv(y, 6, residual=short)


def _late(net: Net) -> Value:
    """A short cut of its own layer, which may take longer than what it is added to."""
    x = net.x(8, 4, 4)
    short, y = (net.conv(x, 8, (1, 1), pads=(0, 0, 0, 0)) for _ in range(2))
    return net.conv(y, 8, residual=short)


def _sliced(net: Net) -> Value:
    """A short cut without parameters: every second pixel, and more channels."""
    b, x = net.builder, net.conv(net.x(2, 6, 6), 4)
    s = b.op("slice", [x], name="rows", quant=x.type.quant, axis=2, start=0, stop=6, step=2)
    s = b.op("slice", [s], name="columns", quant=x.type.quant, axis=3, start=0, stop=6, step=2)
    s = b.op("pad", [s], name="wide", quant=x.type.quant, pads=(0, 1, 0, 0, 0, 1, 0, 0), values=(3,))
    y = net.conv(x, 6, strides=(2, 2))
    return net.conv(y, 6, residual=s)


def _inception(net: Net) -> Value:
    b, x = net.builder, net.x(4, 5, 4)
    parts = [net.conv(x, 4, (1, 1), pads=(0, 0, 0, 0)), net.conv(x, 2), x]
    return net.conv(b.op("concat", parts, name="cat", axis=1, quant=x.type.quant), 3)


def _chain(net: Net) -> Value:
    """Everything between an image and its class."""
    b = net.builder
    x = net.pool(net.conv(net.x(1, 9, 6), 6, (3, 2), strides=(2, 1)))
    y = net.conv(x, 6, groups=6)
    z = net.reduce(net.table(net.linear(x, y), 6), grid(0, 16))
    flat = b.op("reshape", [z], name="flat", quant=z.type.quant, shape=(-1, 6))
    return net.dense(flat, 5, Quant(32, True, (Dyadic(1, 4),)))


def _flattened(net: Net) -> Value:
    b, x = net.builder, net.x(5, 4, 3)
    t = b.op("transpose", [x], name="t", quant=x.type.quant, perm=(0, 3, 1, 2))
    y = net.conv(t, 4)
    return net.dense(b.op("reshape", [y], name="flat", quant=y.type.quant, shape=(-1, 80)), 3)


def _leftover(net: Net) -> Value:
    """A scale per channel that no layer took up, behind a fork, and a product of two branches."""
    x = net.x(4, 4, 4)
    scaled = net.linear(x, per_channel=True)
    return net.requant("imul", [net.conv(x, 4), scaled], 4000, grid())


def _two_outputs(net: Net) -> list[Value]:
    x = net.conv(net.x(2, 4, 4), 4)
    return [net.pool(x), net.conv(x, 2, (1, 1), pads=(0, 0, 0, 0))]


CASES: Final = (
    Case("conv", lambda n: n.conv(n.x(6, 5, 4), 8)),
    Case("strided", lambda n: n.conv(n.x(3, 7, 8), 4, (4, 3), strides=(2, 3), pads=(2, 1, 1, 0))),
    Case("dilated", lambda n: n.conv(n.x(2, 7, 7), 3, dilations=(2, 2), pads=(2, 2, 2, 2))),
    Case("grouped", lambda n: n.conv(n.x(8, 4, 4), 12, groups=4)),
    Case("depthwise", lambda n: n.conv(n.x(6, 5, 5), 6, groups=6)),
    Case("multiplied", lambda n: n.conv(n.x(3, 4, 4), 6, groups=3)),
    Case("pointwise", lambda n: n.conv(n.x(8, 3, 5), 6, (1, 1), pads=(0, 0, 0, 0))),
    Case("signed", lambda n: n.conv(n.x(4, 4, 4, quant=grid(-7, 8, True)), 4, quant=grid(2, 8, True))),
    Case("wide", lambda n: n.conv(n.x(2, 4, 4, quant=grid(29000, 16)), 4, quant=grid(0, 16))),
    Case("narrow", lambda n: n.conv(n.x(4, 4, 4, quant=grid(1, 4)), 8, bits=4, quant=grid(0, 4))),
    Case("two bits", lambda n: n.conv(n.x(8, 4, 4, quant=grid(1, 2)), 4, bits=2, quant=grid(0, 3))),
    Case(
        "powers of two",
        lambda n: n.conv(n.x(4, 4, 4), 4, weights=n.rng.choice([-64, -8, -1, 0, 1, 2, 16, 64], (4, 4, 3, 3))),
    ),
    Case("unread edge", lambda n: n.conv(n.x(4, 6, 6), 4, (1, 1), strides=(3, 3), pads=(0, 0, 0, 0))),
    Case("one pixel", lambda n: n.conv(n.x(4, 1, 1), 4)),
    Case("one row", lambda n: n.conv(n.x(2, 1, 5), 4, (3, 2), strides=(1, 2), pads=(1, 0, 1, 1))),
    Case("padded pool", lambda n: n.pool(n.x(4, 5, 5), (1, 1, 0, 0))),
    Case("narrow pool", lambda n: n.pool(n.x(3, 5, 4, quant=grid(1, 4)), (1, 0, 0, 0))),
    Case("residual", _residual),
    Case("projected", _projected),
    Case("late short cut", _late),
    Case("sliced", _sliced),
    Case("concat", _inception),
    Case("chain", _chain),
    Case("flattened", _flattened),
    Case("left-over scale", _leftover),
    Case("two outputs", _two_outputs),
)


def together(cases: Sequence[Case], samples: int, seed: int = 3) -> tuple[Graph, dict[str, Array], dict[str, str]]:
    """All ``cases`` side by side in one graph, with inputs of their own; and by output, the case's name."""
    net = Net()
    names: dict[str, str] = {}
    outputs = []
    for case in cases:
        made = case.make(net)
        for value in made if isinstance(made, list) else [made]:
            outputs.append(value)
            names[value.name] = case.name
    return net.builder.graph(outputs), _codes(net.builder.graph(outputs), samples, seed), names


def _codes(graph: Graph, samples: int, seed: int) -> dict[str, Array]:
    """Random codes for the inputs of ``graph``."""
    rng = np.random.default_rng(seed)
    inputs = {}
    for v in graph.inputs:
        quant = v.type.quant or grid()
        shape = (samples, *v.type.shape[1:])
        inputs[v.name] = rng.integers(quant.qmin, quant.qmax + 1, shape).astype(DTYPES[v.type.dtype])
    return inputs


def target_cycles(network: Dataflow, most: int) -> dict[str, Folding]:
    """For each stage the folding with the fewest multipliers whose frame takes at most ``most`` cycles.

    Where none does, the fastest.
    """

    def cost(stage: Stage, folding: Folding) -> tuple[bool, int, int, int]:
        needed = cycles(stage, folding)
        late = needed > most
        return late, needed if late else folding.pe * folding.simd, needed, folding.pe

    return {s.name: min(legal(s), key=lambda f, s=s: cost(s, f)) for s in network.stages}  # type: ignore[misc]
