"""Every integer operation on the CPU target against the reference, bit for bit, on several instruction sets.

All cases are operations of one graph, so that each instruction set costs one compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, DTYPES, Dyadic, Quant
from qcc.verify.interp import evaluate
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.isa import LEVELS, available
from qcc_targets.cpu.trial import compile_and_run

SAMPLES = 3
BATCHES = {"generic": 2, "avx512": 1}
"""Samples per call, by instruction set: two make the last call of three samples a padded one."""

COMPILER = Compiler()


def grid(zero_point: int = 3, bits: int = 8, signed: bool = False) -> Quant:
    return Quant(bits, signed, (Dyadic.of(0.05),), zero_point)


@dataclass
class Bench:
    """A graph under construction, its random inputs, and its outputs by case."""

    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("ops", Stage.INTEGER))
    inputs: dict[str, NDArray[Any]] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def x(self, *shape: int, quant: Quant | None = None, batched: bool = True) -> Value:
        quant = quant or grid()
        dims = (BATCH, *shape) if batched else shape
        value = self.builder.input(f"x{len(self.inputs)}", dims, quant.dtype, quant)
        size = (SAMPLES, *shape) if batched else shape
        codes = self.rng.integers(quant.qmin, quant.qmax + 1, size)
        self.inputs[value.name] = codes.astype(DTYPES[quant.dtype])
        return value

    def w(self, *shape: int, zero_point: int = 0) -> Value:
        codes = self.rng.integers(-128, 128, shape).astype(np.int8)
        return self.builder.constant(codes, "w", quant=grid(zero_point, 8, True))

    def m(self, shape: tuple[int, ...], spread: float) -> Value:
        """Multipliers that bring sums of about ``spread`` to a few dozen codes."""
        scale = 60 / spread * 2**32
        values = self.rng.uniform(0.3, 1.0, shape) * np.where(self.rng.random(shape) < 0.2, -1, 1) * scale
        return self.builder.constant(np.clip(values, -(2**31) + 1, 2**31 - 1).astype(np.int32), "m")

    def c(self, shape: tuple[int, ...]) -> Value:
        return self.builder.constant(self.rng.integers(20 << 32, 200 << 32, shape).astype(np.int64), "c")

    def op(self, kind: str, operands: list[Value], quant: Quant | None = None, **attrs: Any) -> Value:
        value = self.builder.op(kind, operands, quant=quant or operands[0].type.quant, **attrs)
        self.outputs[value.name] = value
        return value

    def requantized(self, kind: str, operands: list[Value], quant: Quant | None = None, **attrs: Any) -> Value:
        quant = quant or grid(9)
        clamp: dict[str, Any] = {"shift": 32, "qmin": quant.qmin, "qmax": quant.qmax}
        return self.op(kind, operands, quant, **(clamp | attrs))

    def conv(
        self,
        x: Value,
        outputs: int,
        kernel: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilations: tuple[int, int] = (1, 1),
        groups: int = 1,
        zero_point: int = 0,
        residual: Value | None = None,
        **attrs: Any,
    ) -> Value:
        inputs = x.type.shape[1] // groups
        w = self.w(outputs, inputs, *kernel, zero_point=zero_point)
        spread = 75 * 75 * (inputs * kernel[0] * kernel[1]) ** 0.5
        operands = [x, w, self.m((outputs,), spread), self.c((outputs,))]
        if residual is not None:
            operands += [residual, self.m((outputs,), 200)]
        window: dict[str, Any] = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
        return self.requantized("iconv2d", operands, **window, **attrs)

    def graph(self) -> Graph:
        return self.builder.graph([*self.outputs.values()])


def convolutions(b: Bench) -> None:
    for channels in (1, 3, 5, 17):
        b.conv(b.x(channels, 7, 9), 2 * channels + 1)
    x = b.x(16, 12, 11)
    y = b.conv(x, 33, (1, 1), pads=(0, 0, 0, 0))
    b.conv(y, 33, residual=y)
    b.conv(x, 8, (5, 2), (2, 3), (2, 0, 1, 1))
    b.conv(x, 8, (3, 3), pads=(5, 4, 6, 7))
    b.conv(x, 8, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 3))
    b.conv(x, 12, groups=4)
    b.conv(x, 16, groups=16)
    b.conv(x, 16, (5, 5), (2, 2), (2, 2, 2, 2), groups=16, residual=b.x(16, 6, 6))
    b.conv(x, 32, groups=16)
    b.conv(x, 20, zero_point=-7)
    b.conv(x, 16, groups=16, zero_point=100)
    b.conv(x, 20, qmin=9, qmax=130)
    b.conv(x, 20, shift=29)
    b.conv(b.x(20, 1, 1), 40, (1, 1), pads=(0, 0, 0, 0))
    b.conv(b.x(20, 1, 1), 4, (3, 3))
    b.conv(b.x(6, 5, 5, quant=grid(-4, 8, True)), 6, quant=grid(-3, 8, True), qmin=-128, qmax=127)
    b.conv(b.x(6, 5, 5, quant=grid(0, 16, True)), 6)
    b.conv(b.x(6, 5, 5), 5, quant=grid(0, 32, True), qmin=-(2**31), qmax=2**31 - 1)
    b.conv(b.x(6, 5, 5), 5, quant=grid(10, 4), qmin=0, qmax=15)


def dense_layers(b: Bench) -> None:
    def dense(x: Value, outputs: int, residual: Value | None = None) -> Value:
        depth = x.type.shape[-1]
        m = (outputs,) if outputs != 4 else ()
        operands = [x, b.w(outputs, depth), b.m(m, 75 * 75 * depth**0.5), b.c(m)]
        if residual is not None:
            operands += [residual, b.m((outputs,), 200)]
        return b.requantized("idense", operands)

    for depth, outputs in ((1, 1), (5, 3), (64, 10), (100, 37), (33, 4)):
        dense(b.x(depth), outputs)
    y = dense(b.x(6, 20), 20)
    dense(y, 20, y)
    dense(b.x(4, 3, 5), 7)
    flat = b.op("reshape", [b.x(4, 3, 5)], shape=(BATCH, 60))
    dense(flat, 7)


def matrix_products(b: Bench) -> None:
    def product(a: Value, other: Value, shape: tuple[int, ...] = ()) -> Value:
        spread = 75 * 75 * a.type.shape[-1] ** 0.5
        return b.requantized("imatmul", [a, other, b.m(shape, spread), b.c(shape)])

    product(b.x(4, 7, 9), b.x(4, 9, 21))
    product(b.x(2, 7, 9, quant=grid(-2, 8, True)), b.x(1, 9, 5))
    q, k = b.x(6, 3, 8), b.x(6, 3, 8)
    heads = [b.op("transpose", [v], perm=(0, 2, 1, 3)) for v in (q, k)]
    product(heads[0], b.op("transpose", [heads[1]], perm=(0, 1, 3, 2)))
    product(b.x(5, 12), b.w(12, 18), (18,))
    product(b.builder.constant(b.rng.integers(0, 255, (3, 6)).astype(np.uint8), "a", quant=grid()), b.x(6, 4))


def elementwise(b: Bench) -> None:
    def linear(*xs: Value, shape: tuple[int, ...] = (), spread: float = 100) -> Value:
        pairs = [v for x in xs for v in (x, b.m(shape, spread))]
        return b.requantized("ilinear", [b.c(shape), *pairs])

    x = b.x(5, 6, 7)
    y = linear(x, shape=(1, 5, 1, 1))
    linear(x, y)
    linear(x, b.x(5, 1, 1), b.x(1, 6, 7))
    linear(b.x(5, 1, 7), b.x(1, 6, 1))
    linear(x, b.builder.constant(b.rng.integers(0, 255, (1, 5, 6, 7)).astype(np.uint8), "p", quant=grid()))
    linear(b.x(40), shape=(40,))
    linear(b.x(9, 8), b.x(9, 8, quant=grid(0, 16, True)), spread=20000)
    linear(b.x(4, 4, quant=grid(0, 32, True)), spread=2.0**31)
    b.requantized("imul", [x, y, b.m((), 9000), b.c(())])
    b.requantized("imul", [x, b.x(5, 1, 1, quant=grid(-5, 8, True)), b.m((1, 5, 1, 1), 9000), b.c((1, 5, 1, 1))])
    table = b.builder.constant(b.rng.integers(0, 256, 256).astype(np.uint8), "table")
    z = b.op("ilookup", [x, table], grid(1))
    b.op("ilookup", [z, b.builder.constant(b.rng.integers(-128, 128, (5, 256)).astype(np.int8), "t")], grid(1, 8, True))
    b.op("ilookup", [b.x(9, quant=grid(0, 8, True)), table], grid())
    wide = b.op("ilookup", [b.x(3, 7, 11, quant=grid(0, 8, True)), table], grid(1))
    b.op("ilookup", [b.op("ilookup", [wide, table], grid()), table], grid())
    b.op(
        "ilookup",
        [
            b.op(
                "slice",
                [
                    b.x(40, 90),
                ],
                axis=2,
                start=1,
                stop=72,
                step=1,
            ),
            table,
        ],
        grid(),
    )


def pooling(b: Bench) -> None:
    for quant in (grid(0), grid(7), grid(-3, 8, True)):
        x = b.x(5, 8, 9, quant=quant)
        window: dict[str, Any] = {"kernel": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
        b.op("max_pool2d", [x], **window)
        b.requantized("isum_pool2d", [x, b.m((), 300), b.c(())], **window)
        b.op("max_pool2d", [x], **window | {"kernel": (2, 3), "pads": (0, 2, 1, 0), "dilations": (2, 1)})
        places = (1, 1, 8, 9)
        b.requantized(
            "isum_pool2d", [x, b.m(places, 300), b.c(places)], **window | {"strides": (1, 1), "kernel": (3, 3)}
        )
    x = b.x(70, 7, 7)
    whole: dict[str, Any] = {"kernel": (7, 7), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    b.requantized("isum_pool2d", [x, b.m((), 2000), b.c((1, 70, 1, 1))], **whole)
    b.op("max_pool2d", [b.x(3, 4, 4)], **whole | {"kernel": (3, 3), "pads": (5, 0, 0, 0)})


def reductions(b: Bench) -> None:
    x = b.x(19, 6, 5)
    for axes in ((2, 3), (1,), (3,), (1, 2, 3)):
        for keepdims in (True, False):
            spread = 125.0 * math.prod(x.type.shape[a] for a in axes)
            b.requantized("ireduce_sum", [x, b.m((), spread), b.c(())], axes=axes, keepdims=keepdims)
            b.op("reduce_max", [x], axes=axes, keepdims=keepdims)
    b.requantized("ireduce_sum", [x, b.m((1, 19, 1, 1), 700), b.c((1, 19, 1, 1))], axes=(2, 3), keepdims=True)
    b.requantized("ireduce_sum", [b.x(40, 3), b.m((), 700), b.c(())], axes=(1,), keepdims=False)
    for axis in (1, 2, 3):
        b.op("argmax", [b.x(19, 3, 4)], axis=axis, keepdims=axis == 2)
    ties = b.op("reduce_max", [b.x(10, 2, quant=grid(0, 2))], axes=(2,), keepdims=False)
    b.op("argmax", [ties], axis=1, keepdims=True)
    exponentials = np.rint(65535 * np.exp(-np.arange(256) / 20)).astype(np.int32)
    shapes = [((10,), 1), ((1000,), 1), ((3, 4, 5), 1), ((2, 7), 2), ((2, 7), 1), ((1,), 1)]
    for first, chosen in ((65535, shapes), (512, shapes[3:5]), (1, shapes[2:4])):  # narrow and wide quotients
        exponentials[0] = first
        table = b.builder.constant(exponentials.copy(), "exp")
        for shape, axis in chosen:
            b.op("isoftmax", [b.x(*shape), table], Quant(8, False, (Dyadic(1, 8),)), axis=axis)


def movement(b: Bench) -> None:
    def around(v: Value) -> None:
        """Something that reads a halo and is compiled fast."""
        window: dict[str, Any] = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
        b.requantized("isum_pool2d", [v, b.m((), 500), b.c(())], **window)

    x = b.x(6, 5, 4)
    y = b.conv(x, 8)
    z = b.op("concat", [y, b.conv(x, 4), y, b.x(2, 5, 4, quant=grid(9))], axis=1)
    around(z)
    both = b.op("concat", [b.conv(x, 3), b.conv(x, 3)], axis=2)
    around(both)
    dense = b.op("concat", [z, b.conv(z, 3)], axis=1)
    around(b.op("slice", [dense], axis=1, start=2, stop=9, step=1))
    b.op("slice", [x], axis=2, start=1, stop=5, step=2)
    around(b.op("slice", [y], axis=3, start=0, stop=4, step=2))
    around(b.op("slice", [y], axis=1, start=1, stop=8, step=3))
    b.op("pad", [y], pads=(0, 2, 1, 0, 0, 1, 0, 3), values=(5,))
    b.op("pad", [y], pads=(0, 2, 1, 0, 0, 1, 0, 3), values=tuple(range(8)))
    b.op("pad", [x], pads=(0, 0, 0, 0, 0, 0, 0, 0), values=(0,))
    b.op("gather", [y], axis=1, indices=(7, 0, 0, 3))
    b.op("gather", [y], axis=3, indices=(1, 1))
    d = b.op("dilate2d", [y], factors=(2, 3))
    around(d)
    rows = b.op("transpose", [y], perm=(0, 2, 3, 1))
    b.op("reshape", [rows], shape=(BATCH, 20, 8))
    b.op("reshape", [y], shape=(BATCH, 4, 40))
    shuffled = b.op("reshape", [y], shape=(BATCH, 2, 4, 5, 4))
    shuffled = b.op("transpose", [shuffled], perm=(0, 2, 1, 3, 4))
    around(b.op("reshape", [shuffled], shape=(BATCH, 8, 5, 4)))
    around(b.op("reshape", [b.x(60)], shape=(BATCH, 3, 4, 5)))
    b.op("reshape", [b.op("transpose", [b.x(4, 6)], perm=(0, 2, 1))], shape=(BATCH, 8, 3))
    nhwc = b.op("transpose", [b.x(5, 6, 3)], perm=(0, 3, 1, 2))
    around(nhwc)
    b.conv(nhwc, 7, (1, 1), pads=(0, 0, 0, 0))
    b.op("transpose", [x], perm=(0, 3, 1, 2))
    tables: dict[str, Any] = {"h0": (0, 1, 4), "h1": (1, 2, 4), "hf": (512, 2048, 0)}
    tables |= {"w0": (0, 0, 2, 3), "w1": (0, 1, 3, 3), "wf": (0, 100, 1024, 7)}
    b.requantized("iresize_linear", [x, b.m((), 2.0**22 * 100), b.c(())], **tables)
    b.requantized("iresize_linear", [y, b.m((), 2.0**22 * 100), b.c((1, 8, 1, 1))], **tables)


FAMILIES: tuple[Callable[[Bench], None], ...] = (
    convolutions,
    dense_layers,
    matrix_products,
    elementwise,
    pooling,
    reductions,
    movement,
)


WIDE: tuple[Callable[[Bench], None], ...] = (convolutions, dense_layers, elementwise)
"""What wide vectors compute otherwise; the other families differ in the number of lanes alone."""


@cache
def bench(family: Callable[[Bench], None]) -> Bench:
    made = Bench()
    family(made)
    return made


@cache
def results(isa: str) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Expected and actual output of every case, by family and value name; generic templates only."""
    graph, inputs = union(FAMILIES if isa == "generic" else WIDE)
    plain = replace(LEVELS[isa], features=frozenset())
    got, expected = compile_and_run(graph, inputs, plain, BATCHES[isa], COMPILER), evaluate(graph, inputs)
    return {name: (expected[name], got[name]) for name in expected}


def union(families: tuple[Callable[[Bench], None], ...]) -> tuple[Graph, dict[str, NDArray[Any]]]:
    """One graph that holds the operations of all ``families``, its values named ``family.value``."""

    def renamed(value: Value, prefix: str) -> Value:
        return Value(f"{prefix}.{value.name}", value.type)

    graphs = [(f.__name__, bench(f).graph()) for f in families]
    ops = tuple(
        replace(
            o,
            operands=tuple(renamed(v, name) for v in o.operands),
            results=tuple(renamed(v, name) for v in o.results),
        )
        for name, g in graphs
        for o in g.ops
    )
    inputs = tuple(renamed(v, name) for name, g in graphs for v in g.inputs)
    outputs = tuple(renamed(v, name) for name, g in graphs for v in g.outputs)
    arrays = {f"{f.__name__}.{k}": a for f in families for k, a in bench(f).inputs.items()}
    return Graph("ops", Stage.INTEGER, inputs, ops, outputs), arrays


def cases() -> Iterator[Any]:
    for isa in BATCHES:
        for family in FAMILIES if isa == "generic" else WIDE:
            for name in bench(family).outputs:
                yield pytest.param(isa, f"{family.__name__}.{name}", id=f"{isa}-{family.__name__}.{name}")


@pytest.mark.parametrize(("isa", "case"), list(cases()))
def test_matches_the_reference(isa: str, case: str) -> None:
    if isa not in {level.name for level in available()}:
        pytest.skip(f"this processor has no {isa}")
    expected, got = results(isa)[case]
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert int((got != expected).sum()) == 0
