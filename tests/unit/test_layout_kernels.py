"""Kernels whose weights have widths by channel, or blocks that share exponents: exact, and no larger than need be."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.artifact.sizes import layer_sizes
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value, constant, constants, rewrite
from qcc.ir.layout import Blocks, Widths
from qcc.ir.packing import packed_size
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.trial import trial_session
from qcc.verify.interp import evaluate
from qcc_targets.c.target import MEMORY, CTarget
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.isa import LEVELS, available
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.trial import compile_and_run

Array = NDArray[Any]
COMPILER = Compiler()


def mixed_layers(runs: tuple[tuple[int, int], ...]) -> Graph:
    """A convolution with a residual, a strided one and a dense layer, whose channels have the widths ``runs``."""
    b, rng = GraphBuilder("mixed", Stage.INTEGER), np.random.default_rng(2)
    widths = Widths(0, runs)
    count, bits = widths.size, max(b for _, b in runs)
    unit = Quant(8, False, (Dyadic(1, 4),), 3)

    def layer(kind: str, x: Value, *shape: int, residual: Value | None = None, **attrs: Any) -> Value:
        limit = np.left_shift(1, widths.along(len(shape) + 1) - 1)
        codes = np.floor(rng.uniform(-limit, limit, (count, *shape))).astype(np.int8)
        w = b.constant(codes, "w", quant=Quant(bits, True, (Dyadic(1, 7),) * count, axis=0, layout=widths))
        gain = 40 * 2**32 / (75 * limit.reshape(-1) * np.prod(shape) ** 0.5)
        m, c = b.constant(gain.astype(np.int32), "m"), b.constant(rng.integers(20 << 32, 200 << 32, count), "c")
        extra = [] if residual is None else [residual, b.constant(np.full(count, 1 << 28, np.int32), "mr")]
        return b.op(kind, [x, w, m, c, *extra], quant=unit, shift=32, qmin=0, qmax=255, **attrs)

    window: dict[str, Any] = {"pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
    image, rows = b.input("image", (BATCH, count, 7, 6), "u8", unit), b.input("rows", (BATCH, 70), "u8", unit)
    first = layer("iconv2d", image, count, 3, 3, residual=image, strides=(1, 1), **window)
    second = layer("iconv2d", first, count, 3, 3, strides=(2, 2), **window)
    return b.graph([first, second, layer("idense", rows, 70)])


RUNS = (((16, 2), (32, 4), (16, 8)), ((5, 3), (7, 5), (3, 4)))


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512vnni", "amx"])
def test_kernels_unpack_one_width_each(runs: tuple[tuple[int, int], ...], isa: str) -> None:
    if LEVELS[isa] not in available():
        pytest.skip(f"this processor has no {isa}")
    graph = mixed_layers(runs)
    rng = np.random.default_rng(0)
    inputs = {v.name: rng.integers(0, 256, (2, *v.type.shape[1:])).astype(np.uint8) for v in graph.inputs}
    wanted = evaluate(graph, inputs)
    got = compile_and_run(graph, inputs, isa, compiler=COMPILER)
    for name, codes in wanted.items():
        assert len(np.unique(codes)) > 20
        assert np.array_equal(got[name], codes), name


def test_constants_have_the_size_of_their_widths() -> None:
    runs = RUNS[0]
    count = sum(n for n, _ in runs)
    mixed, plain = (mixed_layers(r) for r in (runs, ((count, 8),)))
    wide, narrow = (len(assemble(lower(g), LEVELS["amx"]).constants) for g in (plain, mixed))
    weights = [constants(mixed)[o.operands[1].name] for o in mixed.ops if o.kind in ("iconv2d", "idense")]
    saved = sum(w[:n].size - packed_size(w[:n].size, b) for w in weights for n, b in runs)
    assert wide - narrow > 0.95 * saved


def test_c_constants_have_the_size_of_their_widths(tmp_path: Path) -> None:
    graph = mixed_layers(RUNS[1])
    rng = np.random.default_rng(0)
    inputs = {v.name: rng.integers(0, 256, (2, *v.type.shape[1:])).astype(np.uint8) for v in graph.inputs}
    wanted = evaluate(graph, inputs)
    with trial_session(graph, CTarget(optimize="size")) as session:
        got = session.run(inputs, raw=True)
    assert all(np.array_equal(got[name], codes) for name, codes in wanted.items())


def blocked_layers(exponent_bits: int) -> Graph:
    """A grouped convolution and a dense layer whose blocks share exponents, the last block of each being smaller."""
    b, rng = GraphBuilder(f"blocked{exponent_bits}", Stage.INTEGER), np.random.default_rng(2)
    unit, blocks = Quant(8, False, (Dyadic(1, 4),), 3), Blocks(4, exponent_bits)

    def layer(kind: str, x: Value, shape: tuple[int, ...], **attrs: Any) -> Value:
        quant = Quant(3, True, (Dyadic(1, 0),) * shape[0], axis=0, layout=blocks)
        codes = quant.quantize(rng.normal(size=shape) * np.exp(rng.normal(size=shape)) * 3)
        gain = np.full(shape[0], 2**32 / (8 * np.prod(shape[1:]) ** 0.5), np.int64)
        m, c = b.constant(gain.astype(np.int32), "m"), b.constant(rng.integers(20 << 32, 200 << 32, shape[0]), "c")
        w = b.constant(codes, "w", quant=quant)
        return b.op(kind, [x, w, m, c], quant=unit, shift=32, qmin=0, qmax=255, **attrs)

    image, rows = b.input("image", (BATCH, 12, 5, 4), "u8", unit), b.input("rows", (BATCH, 67), "u8", unit)
    window: dict[str, Any] = {"pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 2, "strides": (1, 1)}
    return b.graph([layer("iconv2d", image, (10, 6, 3, 3), **window), layer("idense", rows, (9, 67))])


@pytest.mark.parametrize("exponent_bits", [1, 2, 3])
@pytest.mark.parametrize("optimize", ["speed", "size"])
def test_c_keeps_exponents_beside_mantissas(exponent_bits: int, optimize: Literal["speed", "size"]) -> None:
    graph = blocked_layers(exponent_bits)
    rng = np.random.default_rng(0)
    inputs = {v.name: rng.integers(0, 256, (2, *v.type.shape[1:])).astype(np.uint8) for v in graph.inputs}
    wanted = evaluate(graph, inputs)
    with trial_session(graph, CTarget(optimize=optimize)) as session:
        got = session.run(inputs, raw=True)
    for name, codes in wanted.items():
        assert len(np.unique(codes)) > 10
        assert np.array_equal(got[name], codes), name


def test_c_constants_have_the_size_of_mantissas_and_exponents(tmp_path: Path) -> None:
    graph = blocked_layers(2)
    grids = {o.operands[1].name: o.operands[1].type.quant for o in graph.ops if o.kind in ("iconv2d", "idense")}
    arrays = constants(graph)

    def as_bytes(o: Any) -> Any:
        if (grid_ := grids.get(o.result.name)) is None:
            return None
        return [constant(o.result.name, arrays[o.result.name], quant=replace(grid_, bits=8, layout=None))]

    sizes = []
    for each in (graph, rewrite(graph, as_bytes)):
        CTarget(optimize="size").build(each, PassContext(), tmp_path)
        sizes.append(json.loads((tmp_path / MEMORY).read_text())["constants"])
    saved = sum(arrays[name].size for name in grids) - sum(s.bytes for s in layer_sizes(graph))
    assert sizes[1] - sizes[0] > saved - 64 * len(grids)  # vectors behind the weights are aligned
