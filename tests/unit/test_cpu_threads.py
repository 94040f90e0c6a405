"""Several threads in one call: how steps are divided, and that nothing changes by it."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.runtime.team import Team
from qcc.runtime.tvm_network import Library
from qcc.verify.interp import evaluate
from qcc_targets.cpu.compiler import Compiler
from qcc_targets.cpu.isa import LEVELS
from qcc_targets.cpu.lowering import lower
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.pieces import Piece, pieces
from qcc_targets.cpu.target import write_library
from qcc_targets.cpu.trial import compile_graph, run

U8 = Quant(8, False, (Dyadic.of(0.1),), 3)
CLAMP: dict[str, Any] = {"shift": 32, "qmin": 0, "qmax": 255, "quant": U8}


def conv(
    b: GraphBuilder,
    x: Value,
    outputs: int,
    kernel: int,
    *,
    groups: int = 1,
    stride: int = 1,
    residual: Value | None = None,
) -> Value:
    rng = np.random.default_rng(outputs)
    pad = kernel // 2
    window: dict[str, Any] = {"strides": (stride, stride), "pads": (pad,) * 4, "dilations": (1, 1), "groups": groups}
    operands = [
        x,
        b.constant(rng.integers(-9, 10, (outputs, x.type.shape[1] // groups, kernel, kernel)).astype(np.int8), "w"),
        b.constant(rng.integers(1 << 20, 1 << 22, outputs).astype(np.int32), "m"),
        b.constant(rng.integers(0, 1 << 38, outputs).astype(np.int64), "c"),
    ]
    if residual is not None:
        operands += [residual, b.constant(np.full(outputs, 1 << 30, np.int32), "mr")]
    return b.op("iconv2d", operands, **window, **CLAMP)


def network() -> Graph:
    """Layers that are divided by rows, at strides 1 and 2, by channels, and not at all."""
    b = GraphBuilder("net", Stage.INTEGER)
    x = conv(b, b.input("x", (BATCH, 16, 37, 29), "u8", U8), 48, 3)
    x = conv(b, x, 48, 3, residual=x)
    x = conv(b, x, 48, 5, groups=48)
    window: dict[str, Any] = {"kernel": (3, 3), "strides": (2, 2), "pads": (1,) * 4, "dilations": (1, 1)}
    x = b.op("max_pool2d", [conv(b, x, 64, 3, stride=2)], quant=U8, **window)
    x = conv(b, x, 200, 3)
    x = conv(b, x, 200, 1, residual=x)
    return b.graph([b.op("reduce_max", [x], axes=(2, 3), keepdims=False, quant=U8), x])


def samples(count: int, seed: int = 1) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).integers(0, 256, (count, 16, 37, 29)).astype(np.uint8)}


def same(a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]) -> bool:
    return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler()


@pytest.mark.parametrize(("isa", "threads", "batch"), [("native", 2, 1), ("native", 3, 2)])
def test_threads_give_the_same_bits(isa: str, threads: int, batch: int, compiler: Compiler) -> None:
    graph = network()
    loaded = compile_graph(graph, isa, batch, compiler, threads)
    inputs = [samples(2, seed) for seed in range(3)]
    expected = [evaluate(graph, one) for one in inputs]
    for _ in range(10):
        for one, want in zip(inputs, expected, strict=True):
            assert same(run(loaded, one), want)
    with ThreadPoolExecutor(3) as pool:  # callers of their own, each with the same helpers
        results = list(pool.map(lambda one: run(loaded, one), inputs * 4))
    assert all(same(got, want) for got, want in zip(results, expected * 4, strict=True))


def divided() -> list[tuple[Piece, ...]]:
    return [
        pieces(step.site, 2, LEVELS["avx512vnni"]) for step in lower(network()).steps if step.site.op.kind == "iconv2d"
    ]


def test_steps_are_divided_by_rows_or_channels() -> None:
    shapes = [[p.site.output.shape[1:3] for p in found] for found in divided()]
    assert shapes[0] == [(48, 18), (48, 19)]
    assert shapes[2] == [(48, 37)]
    assert shapes[4] == [(96, 10), (104, 10)]
    assert shapes[5] == [(96, 10), (104, 10)]


def test_pieces_cover_a_step_and_no_more() -> None:
    for found in divided():
        size = sum(p.site.output.size for p in found)
        touched = set[int]()
        for p in found:
            v = p.site.output
            at = np.indices(v.shape)
            where = v.offset + p.output // v.itemsize + sum(i * s for i, s in zip(at, v.strides, strict=True))
            touched |= set(where.ravel().tolist())
        assert len(touched) == size


def test_equal_pieces_share_a_function() -> None:
    b = GraphBuilder("g", Stage.INTEGER)
    y = conv(b, conv(b, b.input("x", (BATCH, 32, 32, 32), "u8", U8), 32, 3), 32, 3)
    report = assemble(lower(b.graph([conv(b, y, 32, 3)])), LEVELS["avx2"], 2).report
    functions = [row.function for row in report if row.op == "iconv2d"]
    assert len(functions) == 6 and len(set(functions[:4])) == 1


def test_a_library_stays_as_long_as_its_functions(compiler: Compiler, tmp_path: Path) -> None:
    """A helper may be inside a function when the network is dropped."""
    b = GraphBuilder("g", Stage.INTEGER)
    graph = b.graph([b.op("reduce_max", [b.input("x", (BATCH, 4), "u8", U8)], axes=(1,), keepdims=False, quant=U8)])
    write_library(assemble(lower(graph), LEVELS["generic"]), LEVELS["generic"], compiler, tmp_path / "l.so")
    library = Library(tmp_path / "l.so")
    function, alive = library.function("qcc_sizes", [ctypes.c_void_p] * 2), weakref.ref(library)
    del library
    gc.collect()
    assert alive() is not None
    sizes = (ctypes.c_int64 * 2)()
    function(ctypes.addressof(sizes), ctypes.addressof(sizes) + 8)
    assert sizes[1] > 0
    del function
    gc.collect()
    assert alive() is None


def test_a_team_sleeps_between_calls_and_leaves_with_its_owner() -> None:
    seen: list[int] = []

    def share(value: int, control: ctypes.c_void_p) -> None:
        seen.append(value)
        assert control.value is not None and control.value % 64 == 0

    before = threading.active_count()
    team = Team(share, 128, 3)
    assert threading.active_count() == before + 2
    team(7)
    time.sleep(0.2)
    assert set(seen) == {7}
    start = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - start < 0.1
    del team
    gc.collect()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_small_networks_are_not_shared() -> None:
    """Threads take longer to meet than its steps take; on tiles larger ones are done sooner still."""
    b = GraphBuilder("g", Stage.INTEGER)
    small = b.graph([conv(b, b.input("x", (BATCH, 16, 9, 9), "u8", U8), 16, 3)])
    for graph, isa, shared in ((small, "avx2", False), (network(), "avx2", True)):
        found = assemble(lower(graph), LEVELS[isa], 2)
        assert (found.control > 0) == shared and ("qcc_share" in found.callers) == shared
    b = GraphBuilder("g", Stage.INTEGER)
    middle = b.graph([conv(b, b.input("x", (BATCH, 32, 20, 20), "u8", U8), 32, 3)])
    assert [assemble(lower(middle), LEVELS[isa], 2).control > 0 for isa in ("avx512vbmi", "amx")] == [True, False]
