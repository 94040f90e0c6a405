"""Rescaled copies and sums of two tensors in vectors, against the reference, per instruction set."""

from typing import Any

import numpy as np
import pytest

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc_targets.cpu.isa import LEVELS, available
from qcc_targets.cpu.simd.trial import judge


def grid(bits: int = 8, zero_point: int = 3) -> Quant:
    return Quant(bits, False, (Dyadic.of(0.05),), zero_point)


class Sums:
    """Sums of values that other operations made, so that none lies in the caller's memory or order."""

    def __init__(self) -> None:
        self.b = GraphBuilder("sums", Stage.INTEGER)
        self.rng = np.random.default_rng(3)
        self.outputs: list[Value] = []

    def value(self, *shape: int, quant: Quant | None = None) -> Value:
        quant = quant or grid()
        x = self.b.input(f"x{len(self.outputs)}_{self.rng.integers(1 << 30)}", (BATCH, *shape), quant.dtype, quant)
        if len(shape) == 1:
            return self.add([x], quant)
        window: dict[str, Any] = {"kernel": (1, 1), "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
        return self.b.op("max_pool2d", [x], quant=quant, **window)

    def add(self, terms: list[Value], quant: Quant, *, per_channel: bool = False) -> Value:
        channels = terms[0].type.shape[1] if per_channel else 1
        shape = (channels, *(1,) * (terms[0].type.rank - 2))
        operands = [self.b.constant(self.rng.integers(-(9 << 20), 9 << 20, shape), "c")]
        for term in terms:
            gain = (1 << quant.bits - 1) / (1 << (8 if term.type.dtype == "u8" else 16)) * 2**20
            m = self.b.constant((self.rng.uniform(0.4, 1, shape) * gain).astype(np.int32), "m")
            operands += [term, m]
        end: dict[str, Any] = {"shift": 20, "qmin": quant.qmin, "qmax": quant.qmax}
        result = self.b.op("ilinear", operands, quant=quant, **end)
        self.outputs.append(result)
        return result

    def graph(self) -> Graph:
        return self.b.graph(self.outputs)


def sums() -> tuple[Graph, int]:
    s = Sums()
    for shape in ((16, 5, 7), (64, 4, 4), (70, 2, 3), (130,)):
        x = s.value(*shape)
        s.add([x], grid(4, 0))
        s.add([x, s.value(*shape)], grid(8), per_channel=True)
        wide = s.add([x], grid(16, 900))
        s.add([wide], grid(8), per_channel=True)
        s.add([x, wide], grid(16, 9))
    return s.graph(), 4 * 5


@pytest.mark.parametrize("isa", ["avx2", "avx512vnni", "amx"])
def test_kernels_compute_what_the_reference_does(isa: str) -> None:
    if isa not in {level.name for level in available()}:
        pytest.skip(f"this processor has no {isa}")
    graph, count = sums()
    verdicts = [v for v in judge(graph, LEVELS[isa]) if v.op == "ilinear"]
    assert len(verdicts) == count
    assert [v for v in verdicts if v.differing] == []
