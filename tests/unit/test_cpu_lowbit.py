"""Weights of 2 to 7 bits on the CPU target: packed in the constants, and bit for bit the reference's results."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.packing import lowest, packed_size
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify.interp import evaluate
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.isa import LEVELS, available
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.simd.lowbit import LowBit
from qcc_targets.cpu.trial import compile_and_run

COMPILER = Compiler()
UNIT = Quant(8, False, (Dyadic(1, 4),), 3)
ISAS = ("avx2", "avx512vnni", "amx")


class Net:
    """Layers of all widths side by side over three inputs, so that an instruction set costs one compilation."""

    def __init__(self) -> None:
        self.b = GraphBuilder("lowbit", Stage.INTEGER)
        self.rng = np.random.default_rng(5)
        self.outputs: list[Value] = []

    def layer(self, kind: str, bits: int, x: Value, shape: tuple[int, ...], *more: Value, **attrs: Any) -> Value:
        low = lowest("i8", bits)
        codes = self.rng.integers(low, -low, shape).astype(np.int8)
        codes.flat[:2] = low, -low - 1
        w = self.b.constant(codes, "w", quant=Quant(bits, True, (Dyadic(1, 7),) * shape[0], axis=0))
        deviation = 75 if x.type.dtype == "u8" else 75 << 8
        gain = 2**32 / (deviation * -low * np.prod(shape[1:]) ** 0.5) * 40
        m = self.b.constant((self.rng.uniform(0.3, 1, shape[0]) * gain).astype(np.int32), "m")
        c = self.b.constant(self.rng.integers(20 << 32, 200 << 32, shape[0]), "c")
        extra = [v for r in more for v in (r, self.b.constant(np.full(shape[0], 1 << 28, np.int32), "mr"))]
        y = self.b.op(kind, [x, w, m, c, *extra], quant=UNIT, shift=32, qmin=0, qmax=255, **attrs)
        self.outputs.append(y)
        return y


def window(pad: int = 0, stride: int = 1, groups: int = 1) -> dict[str, Any]:
    return {"strides": (stride, stride), "pads": (pad,) * 4, "dilations": (1, 1), "groups": groups}


@cache
def network() -> tuple[Graph, dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    n = Net()
    image = n.b.input("image", (BATCH, 3, 9, 8), "u8", UNIT)
    rows = n.b.input("rows", (BATCH, 70), "u8", UNIT)
    words = n.b.input("words", (BATCH, 20, 5, 6), "u16", Quant(16, False, (Dyadic(1, 12),), 700))
    for bits in range(2, 8):
        n.layer("idense", bits, rows, (130, 70))
    stem = n.layer("iconv2d", 5, image, (33, 3, 3, 3), **window(1))
    point = n.layer("iconv2d", 4, stem, (64, 33, 1, 1), **window())
    n.layer("iconv2d", 3, point, (64, 64, 3, 3), point, **window(1))
    n.layer("iconv2d", 4, point, (40, 64, 3, 3), **window(1))
    n.layer("iconv2d", 2, point, (24, 16, 3, 3), **window(1, 2, 4))
    n.layer("iconv2d", 4, point, (64, 1, 3, 3), **window(1, 1, 64))
    n.layer("iconv2d", 4, words, (40, 20, 3, 3), **window(1))
    graph = n.b.graph(n.outputs)
    inputs: dict[str, NDArray[Any]] = {
        "image": n.rng.integers(0, 256, (2, 3, 9, 8)).astype(np.uint8),
        "rows": n.rng.integers(0, 256, (2, 70)).astype(np.uint8),
        "words": n.rng.integers(0, 1 << 16, (2, 20, 5, 6)).astype(np.uint16),
    }
    return graph, inputs, evaluate(graph, inputs)


@pytest.mark.parametrize("isa", ISAS)
def test_results_are_the_references(isa: str) -> None:
    if LEVELS[isa] not in available():
        pytest.skip(f"this processor has no {isa}")
    graph, inputs, wanted = network()
    got = compile_and_run(graph, inputs, isa, compiler=COMPILER)
    different = [name for name, array in wanted.items() if not np.array_equal(array, got[name])]
    assert not different
    assert any(len(np.unique(array)) > 50 for array in wanted.values())


def test_both_fast_templates_are_tried() -> None:
    names = [row.kernel for row in assemble(lower(network()[0]), LEVELS["amx"]).report]
    for template in ("conv2d.amx[1x", "dense."):
        assert any(name.startswith(template) and " bits]" in name for name in names), names


@pytest.mark.parametrize("bits", range(2, 8))
def test_slices_come_back_from_their_fields(bits: int) -> None:
    packing, rng = LowBit(bits), np.random.default_rng(bits)
    codes = rng.integers(packing.lowest, -packing.lowest, (3, packing.slices, 64)).astype(np.int8)
    packed = packing.pack(codes)
    assert packed[0].nbytes * 8 == codes[0].size * bits
    for number in range(packing.slices):
        found = np.full((3, 64), packing.lowest, np.int16)
        for f in packing.fields(number):
            found += (packed[:, f.vector].astype(np.int16) >> f.shift & ((1 << f.width) - 1)) << f.place
        assert np.array_equal(found, codes[:, number])


@pytest.mark.parametrize("isa", ["avx2", "avx512vnni", "amx"])
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
def test_constants_shrink_with_the_bits(isa: str, bits: int) -> None:
    n = Net()
    x = n.b.input("x", (1, 64, 7, 7), "u8", UNIT)
    n.layer("iconv2d", bits, x, (64, 64, 3, 3), **window(1))
    size = len(assemble(lower(n.b.graph(n.outputs)), LEVELS[isa]).constants)
    widened = 2 if bits == 8 and "vnni" not in LEVELS[isa] else 1
    epilogue = 64 * 16 + 1024
    assert 0 <= size - widened * packed_size(64 * 576, bits) <= epilogue


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_too_many_for_the_caches_are_asked_for_ahead(bits: int) -> None:
    n = Net()
    x = n.b.input("x", (1, 1030), "u8", UNIT)
    y = n.layer("idense", bits, x, (1035, 1030))
    graph, codes = n.b.graph([y]), n.rng.integers(0, 256, (1, 1030)).astype(np.uint8)
    got = compile_and_run(graph, {"x": codes}, compiler=COMPILER)[y.name]
    assert np.array_equal(got, evaluate(graph, {"x": codes})[y.name])
