"""Convolutions and dense layers in vectors and tiles against the reference, kernel by kernel, per instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc_targets.cpu.isa import LEVELS, available
from qcc_targets.cpu.simd.trial import judge


def grid(bits: int = 8, signed: bool = False, zero_point: int = 3) -> Quant:
    return Quant(bits, signed, (Dyadic.of(0.05),), zero_point)


@dataclass
class Bench:
    """A graph of unrelated operations under construction."""

    builder: GraphBuilder = field(default_factory=lambda: GraphBuilder("simd", Stage.INTEGER))
    outputs: list[Value] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def x(self, *shape: int, quant: Quant | None = None) -> Value:
        quant = quant or grid()
        return self.builder.input(f"x{len(self.outputs)}", (BATCH, *shape), quant.dtype, quant)

    def _requantized(
        self, kind: str, x: Value, weights: tuple[int, ...], quant: Quant, residual: Value | None, **attrs: Any
    ) -> Value:
        depth = int(np.prod(weights[1:]))
        grid_in = x.type.quant
        reach = 128 if grid_in is None else (grid_in.qmax - grid_in.qmin) / 2
        scale = (quant.qmax - quant.qmin) / (reach * 40 * depth**0.5) if quant.bits < 32 else 0.9
        shift = 32
        m = np.clip(self.rng.uniform(0.3, 1.0, weights[0]) * scale * 2**shift, 0, 2**31 - 1).astype(np.int32)
        middle = (quant.qmax + quant.qmin) // 2 << shift
        c = self.rng.integers(middle, middle + (8 << shift), weights[0]).astype(np.int64)
        codes = self.rng.integers(-127, 128, weights).astype(np.int8)
        operands = [x, self.builder.constant(codes, "w", quant=Quant(8, True, (Dyadic.of(0.1),), 0))]
        operands += [self.builder.constant(m, "m"), self.builder.constant(c, "c")]
        if residual is not None:
            r = self.rng.integers(1, 2**30, weights[0]).astype(np.int32)
            operands += [residual, self.builder.constant(r, "mr")]
        bounds: dict[str, Any] = {"shift": shift, "qmin": quant.qmin, "qmax": quant.qmax}
        value = self.builder.op(kind, operands, quant=quant, **bounds, **attrs)
        self.outputs.append(value)
        return value

    def conv(
        self,
        x: Value,
        outputs: int,
        kernel: tuple[int, int] = (3, 3),
        strides: tuple[int, int] = (1, 1),
        pads: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilations: tuple[int, int] = (1, 1),
        groups: int = 1,
        quant: Quant | None = None,
        residual: Value | None = None,
    ) -> Value:
        window: dict[str, Any] = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups}
        weights = (outputs, x.type.shape[1] // groups, *kernel)
        return self._requantized("iconv2d", x, weights, quant or grid(), residual, **window)

    def dense(self, x: Value, outputs: int, quant: Quant | None = None) -> Value:
        return self._requantized("idense", x, (outputs, x.type.shape[-1]), quant or grid(), None)

    def graph(self) -> Graph:
        return self.builder.graph(self.outputs)


def bytes_in(b: Bench) -> None:
    for channels in (1, 3, 5, 17):
        b.conv(b.x(channels, 7, 9), 2 * channels + 1)
    x = b.x(16, 12, 11)
    y = b.conv(x, 33, (1, 1), pads=(0, 0, 0, 0))
    b.conv(y, 33, residual=y)
    b.conv(x, 8, (5, 2), (2, 3), (2, 0, 1, 1))
    b.conv(x, 64, (3, 3), pads=(2, 2, 2, 2), dilations=(2, 3))
    b.conv(x, 20, quant=grid(16))
    b.conv(x, 16, (1, 1), pads=(0, 0, 0, 0), quant=grid(12, True))
    b.conv(b.x(72, 5, 3), 96, quant=grid(8, True, -5), residual=b.x(96, 5, 3))
    b.conv(b.x(70, 1, 1), 40, (1, 1), pads=(0, 0, 0, 0), quant=grid(32, True, 0))
    b.dense(b.x(100), 37)
    b.dense(b.x(6, 64), 128)


def small_planes(b: Bench) -> None:
    """Planes that fit one block with the halo between their rows, one of them with weights asked for ahead of time."""
    x = b.x(64, 7, 7)
    b.conv(b.conv(x, 64, residual=x), 48)
    b.conv(b.x(32, 8, 8), 20)
    b.conv(b.x(160, 7, 7), 192)
    b.conv(b.x(32, 5, 3, quant=grid(14)), 40, quant=grid(16))
    b.conv(b.x(16, 6, 7), 16, (5, 5), pads=(2, 2, 2, 2), dilations=(1, 1), quant=grid(32, True, 0))


def words_in(b: Bench) -> None:
    b.conv(b.x(3, 9, 11, quant=grid(16, zero_point=32000)), 24, strides=(2, 2))
    b.conv(b.x(3, 9, 11, quant=grid(16, True, -3)), 32, (7, 7), (2, 2), (3, 3, 3, 3))
    b.conv(b.x(1, 13, 10, quant=grid(12, zero_point=100)), 64, (5, 4), (2, 2), (2, 1, 2, 1), quant=grid(16))
    b.conv(b.x(16, 6, 5, quant=grid(14)), 16, residual=b.x(16, 6, 5))
    b.conv(b.x(20, 6, 5, quant=grid(16, zero_point=9)), 40)
    b.conv(b.x(16, 6, 5), 33, quant=grid(16, zero_point=900), residual=b.x(33, 6, 5, quant=grid(16, zero_point=90)))
    b.conv(b.x(8, 6, 5), 64, (1, 1), pads=(0, 0, 0, 0), residual=b.x(64, 6, 5, quant=grid(16)))
    b.conv(b.x(64, 4, 4, quant=grid(13)), 80, (1, 1), pads=(0, 0, 0, 0))
    b.dense(b.x(640, quant=grid(13)), 1000, grid(32, True, 0))
    b.dense(b.x(64, quant=grid(16)), 10, grid(32, True, 0))
    b.dense(b.x(5, 33, quant=grid(16, True, 7)), 20)


def depthwise(b: Bench) -> None:
    for channels, kernel, stride in ((8, 3, 1), (96, 3, 2), (70, 5, 1)):
        pad = kernel // 2
        x = b.x(channels, 5, 7)
        b.conv(x, channels, (kernel, kernel), (stride, stride), (pad,) * 4, groups=channels)
    x = b.x(64, 7, 6)
    b.conv(x, 64, (3, 2), pads=(2, 1, 2, 1), dilations=(2, 2), groups=64)
    b.conv(x, 64, groups=64, residual=x)


def drawn(b: Bench) -> None:
    """Convolutions at random."""
    rng = np.random.default_rng(11)

    def upto(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def pair(low: int, high: int) -> tuple[int, int]:
        return upto(low, high), upto(low, high)

    inputs = (grid(8, False, 9), grid(8, False, 0), grid(13, False, 500))
    results = (grid(8), grid(8, True, -2), grid(16))
    for _ in range(8):
        channels, outputs = (int(rng.choice([1, 3, 4, 12, 16, 20, 48, 64, 80])) for _ in range(2))
        x = b.x(channels, *pair(7, 14), quant=inputs[upto(0, 2)])
        pads = (*pair(0, 2), *pair(0, 2))
        b.conv(x, outputs, pair(1, 4), pair(1, 2), pads, pair(1, 2), quant=results[upto(0, 2)])


def few(b: Bench) -> None:
    """What shows how an instruction set multiplies."""
    b.conv(b.x(5, 7, 9), 40, quant=grid(8, False, 0))
    b.conv(b.x(3, 5, 6, quant=grid(16)), 24, strides=(2, 2))
    b.conv(b.x(40, 5, 6), 40, groups=40)


CASES: list[tuple[str, Callable[[Bench], None]]] = [
    *((isa, family) for isa in ("avx512vnni", "amx") for family in (bytes_in, words_in, depthwise)),
    *((isa, drawn) for isa in ("avx512vbmi", "amx")),
    *((isa, few) for isa in ("avx2", "avxvnni", "avx512")),
    ("avx2", words_in),
    *((isa, small_planes) for isa in ("avx512vbmi", "amx")),
]


@pytest.mark.parametrize(("isa", "family"), CASES, ids=[f"{isa}-{family.__name__}" for isa, family in CASES])
def test_kernels_compute_what_the_reference_does(isa: str, family: Callable[[Bench], None]) -> None:
    if isa not in {level.name for level in available()}:
        pytest.skip(f"this processor has no {isa}")
    b = Bench()
    family(b)
    verdicts = judge(b.graph(), LEVELS[isa], batch=2 if isa == "avx512vnni" or family is small_planes else 1)
    contractions = [v for v in verdicts if v.op in ("iconv2d", "idense")]
    assert len(contractions) == len(b.outputs)
    assert [v for v in verdicts if v.differing] == []
