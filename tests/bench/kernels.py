# ruff: noqa: T201 - a measurement prints
"""Time single kernels of the cpu target, interleaved: microseconds, GOPS and nanoseconds a result, per shape.

    python tests/bench/kernels.py [--isa amx,avx512vnni] [--rounds N] [PATTERN ...]

Shapes are written kind:channels>outputs@height x width/kernel/stride; kind16 takes 13-bit codes.
Every round runs each kernel a fraction of a millisecond; the first figure is the best round, the
second the median. Caches are warm: what a kernel takes inside a network, ``qcc bench --profile`` says.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc_targets.cpu.cost import operations
from qcc_targets.cpu.isa import resolve
from qcc_targets.cpu.kernel import Kernel, Site
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.select import select
from qcc_targets.cpu.simd.trial import Call, Trial, place

SHAPES: Final = (
    # the stems of the networks
    "conv:3>64@224x224/3/2",
    "conv:3>64@224x224/7/2",
    "conv16:3>64@224x224/7/2",
    "conv16:3>32@224x224/3/2",
    # ResNet-50
    "conv:64>64@56x56/1/1",
    "conv:64>64@56x56/3/1",
    "conv:64>256@56x56/1/1",
    "conv:256>64@56x56/1/1",
    "conv:128>128@28x28/3/1",
    "conv:128>512@28x28/1/1",
    "conv:512>128@28x28/1/1",
    "conv:256>256@14x14/3/1",
    "conv:1024>256@14x14/1/1",
    "conv:512>512@7x7/3/1",
    "conv:2048>512@7x7/1/1",
    # MobileNetV2
    "conv:16>96@112x112/1/1",
    "conv:24>144@56x56/1/1",
    "conv:144>24@56x56/1/1",
    "depthwise:32@112x112/3/1",
    "depthwise:96@112x112/3/2",
    "depthwise:144@56x56/3/1",
    "depthwise:192@28x28/3/1",
    "depthwise:384@14x14/3/1",
    "depthwise:576@14x14/3/1",
    "depthwise:960@7x7/3/1",
    "dense:1280>1000",
    "dense16:1280>1000",
    # small networks
    "conv:16>16@32x32/3/1",
    "conv:64>64@8x8/3/1",
    "depthwise:64@25x5/3/1",
    "conv:64>64@25x5/1/1",
    # the rest
    "max_pool:64@111x111/3/2",
    "mean:1280@7x7",
    "mean16:2048@7x7",
)

_SPELLING: Final = re.compile(
    r"(?P<kind>[a-z_]+)(?P<bits>16)?:(?P<inputs>\d+)(>(?P<outputs>\d+))?(@(?P<h>\d+)x(?P<w>\d+))?(/(?P<k>\d+)/(?P<s>\d+))?"
)
_ROUND_SECONDS: Final = 3e-4


@dataclass(frozen=True, slots=True)
class Shape:
    """One operation at one size."""

    kind: str
    bits: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: int
    stride: int

    @classmethod
    def of(cls, text: str) -> Shape:
        found = _SPELLING.fullmatch(text)
        if found is None:
            raise SystemExit(f"'{text}' is no shape; an example: {SHAPES[0]}")
        f = found.groupdict()
        inputs = int(f["inputs"])
        size = (int(f["h"] or 1), int(f["w"] or 1))
        return cls(
            f["kind"],
            int(f["bits"] or 8),
            inputs,
            int(f["outputs"] or inputs),
            size,
            int(f["k"] or 1),
            int(f["s"] or 1),
        )

    def graph(self) -> Graph:
        """A graph of this one operation."""
        b = GraphBuilder("bench", Stage.INTEGER)
        rng = np.random.default_rng(0)
        quant = Quant(8, False, (Dyadic(1, 4),), 3)
        given = Quant(8 if self.bits == 8 else 13, False, (Dyadic(1, 4),), 3)
        shape = (BATCH, self.inputs) if self.kind == "dense" else (BATCH, self.inputs, *self.size)
        x = b.input("x", shape, given.dtype, given)
        pad = self.kernel // 2
        window: dict[str, Any] = {"strides": (self.stride,) * 2, "pads": (pad,) * 4, "dilations": (1, 1)}
        clamp: dict[str, Any] = {"shift": 32, "qmin": 0, "qmax": 255, "quant": quant}
        if self.kind == "max_pool":
            return b.graph([b.op("max_pool2d", [x], quant=given, kernel=(self.kernel,) * 2, **window)])
        outputs = 1 if self.kind == "mean" else self.outputs
        constants: list[NDArray[Any]] = [np.full(outputs, 1 << 16, np.int32), np.full(outputs, 1 << 34, np.int64)]
        if self.kind == "mean":
            scalars = [b.constant(a.reshape(()), "k") for a in constants]
            return b.graph([b.op("ireduce_sum", [x, *scalars], axes=(2, 3), keepdims=True, **clamp)])
        depth = () if self.kind == "dense" else (self.kernel,) * 2
        groups = self.inputs if self.kind == "depthwise" else 1
        codes = rng.integers(-127, 128, (outputs, self.inputs // groups, *depth)).astype(np.int8)
        weights = b.constant(codes, "w", quant=Quant(8, True, (Dyadic(1, 7),), 0))
        operands = [x, weights, *(b.constant(a, "k") for a in constants)]
        if self.kind == "dense":
            return b.graph([b.op("idense", operands, **clamp)])
        return b.graph([b.op("iconv2d", operands, groups=groups, **window, **clamp)])


@dataclass(frozen=True, slots=True)
class Subject:
    """A kernel to time."""

    shape: str
    isa: str
    site: Site
    kernel: Kernel


def subjects(shapes: list[str], isas: list[str]) -> Iterator[Subject]:
    for shape in shapes:
        for isa in isas:
            *_, step = (s for s in lower(Shape.of(shape).graph()).steps if s.site.op.kind not in ("copy", "fill_halo"))
            yield Subject(shape, isa, step.site, select(step.site, resolve(isa)))


def bind(trial: Trial, number: int, site: Site) -> Call:
    rng = np.random.default_rng(1)
    arrays = [rng.integers(0, 200, v.shape).astype(v.tvm_dtype) for v in site.inputs]
    inputs = [place(v, a) for v, a in zip(site.inputs, arrays, strict=True)]
    return trial.bind(number, inputs, place(site.output, np.zeros(site.output.shape, site.output.tvm_dtype)))


def measure(calls: list[Call], rounds: int) -> list[list[float]]:
    """Seconds a call of every kernel in every round."""
    repeats = [max(1, int(_ROUND_SECONDS / max(_seconds(call, 1), 1e-7))) for call in calls]
    samples: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, seconds in zip(calls, repeats, samples, strict=True):
            seconds.append(_seconds(call, count) / count)
    return samples


def _seconds(call: Call, count: int) -> float:
    start = time.perf_counter()
    call(count)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="shapes, or regular expressions for known ones")
    parser.add_argument("--isa", default="native")
    parser.add_argument("--rounds", type=int, default=200)
    chosen = parser.parse_args()
    shapes = [s for s in SHAPES if any(re.search(p, s) for p in chosen.patterns or [""])]
    shapes += [p for p in chosen.patterns if p not in shapes and _SPELLING.fullmatch(p)]
    found = list(subjects(shapes, chosen.isa.split(",")))
    calls = []
    for isa in dict.fromkeys(s.isa for s in found):
        mine = [s for s in found if s.isa == isa]
        trial = Trial(resolve(isa), [s.kernel for s in mine])
        calls += [(s, bind(trial, number, s.site)) for number, s in enumerate(mine)]
    samples = measure([call for _, call in calls], chosen.rounds)
    print(f"{'shape':30} {'best µs':>9} {'median':>9} {'GOPS':>7} {'ns/result':>9}  kernel")
    for (s, _), seconds in sorted(zip(calls, samples, strict=True), key=lambda c: shapes.index(c[0][0].shape)):
        best, rate = min(seconds), operations(s.site) / min(seconds) / 1e9
        middle = statistics.median(seconds)
        each = best / s.site.output.size * 1e9
        print(f"{s.shape:30} {best * 1e6:9.2f} {middle * 1e6:9.2f} {rate:7.0f} {each:9.3f}  {s.kernel.name}")


if __name__ == "__main__":
    main()
