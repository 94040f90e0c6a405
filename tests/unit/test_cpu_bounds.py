"""Kernels read and write nothing outside the caller's arrays: these end, or begin, at unmapped pages."""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.runtime.tvm_network import Network
from qcc.verify.interp import evaluate
from qcc_targets.cpu.trial import compile_graph

U8 = Quant(8, False, (Dyadic.of(0.1),), 3)
CLAMP: dict[str, Any] = {"shift": 32, "qmin": 0, "qmax": 255}


def direct() -> Graph:
    """Operations that read the graph's inputs and write its outputs themselves."""
    b = GraphBuilder("direct", Stage.INTEGER)
    rng = np.random.default_rng(3)

    def constants(outputs: int) -> list[Value]:
        m = b.constant(rng.integers(1 << 20, 1 << 23, outputs).astype(np.int32), "m")
        return [m, b.constant(rng.integers(0, 1 << 40, outputs).astype(np.int64), "c")]

    def weights(*shape: int) -> Value:
        return b.constant(rng.integers(-127, 128, shape).astype(np.int8), "w")

    window: dict[str, Any] = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    results = []
    for channels, outputs, kernel in ((3, 16, 3), (70, 33, 1)):
        image = b.input("image", (BATCH, 7, 9, channels), "u8", U8)
        x = b.op("transpose", [image], perm=(0, 3, 1, 2), quant=U8)
        y = b.op(
            "iconv2d",
            [x, weights(outputs, channels, kernel, kernel), *constants(outputs)],
            quant=U8,
            groups=1,
            **window,
            **CLAMP,
        )
        pooled = b.op("max_pool2d", [x], kernel=(2, 2), quant=U8, **window)
        depthwise = [x, weights(channels, 1, 3, 3), *constants(channels)]
        filtered = b.op("iconv2d", depthwise, quant=U8, groups=channels, **window, **CLAMP)
        results += [b.op("transpose", [v], perm=(0, 2, 3, 1), quant=U8) for v in (y, pooled, filtered)]
    for depth, outputs in ((5, 3), (67, 19)):
        row = b.input("row", (BATCH, depth), "u8", U8)
        results.append(b.op("idense", [row, weights(outputs, depth), *constants(outputs)], quant=U8, **CLAMP))
        m, c = (b.constant(v.reshape(-1)[:1], "one") for v in (np.array([1 << 30], np.int32), np.array([1 << 33])))
        results.append(b.op("ilinear", [c, row, m], quant=U8, **CLAMP))
        results.append(b.op("ireduce_sum", [row, m, c], axes=(1,), keepdims=True, quant=U8, **CLAMP))
    return b.graph(results)


class Fenced:
    """Arrays between two unmapped pages, at the end or the beginning of the memory in between."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self._keep: list[mmap.mmap] = []

    def __call__(self, array: NDArray[Any]) -> NDArray[Any]:
        page = mmap.PAGESIZE
        body = -(-array.nbytes // page) * page
        memory = mmap.mmap(-1, body + 2 * page)
        self._keep.append(memory)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for fence in (start, start + page + body):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(page), 0) == 0
        offset = page + (body - array.nbytes if self.at_end else 0)
        inside = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
        inside[...] = array
        return inside


@pytest.fixture(scope="module", params=["generic", "native"])
def network(request: pytest.FixtureRequest) -> Network:
    return compile_graph(direct(), request.param)


@pytest.mark.parametrize("at_end", [True, False])
def test_nothing_outside_is_touched(network: Network, at_end: bool) -> None:
    rng = np.random.default_rng(5)
    shapes = {v.name: (1, *v.type.shape[1:]) for v in direct().inputs}
    inputs = {name: rng.integers(0, 256, shape).astype(np.uint8) for name, shape in shapes.items()}
    expected = evaluate(direct(), inputs)
    child = os.fork()
    if child == 0:  # a fault must not take the test run down
        fenced = Fenced(at_end)
        ins = {name: fenced(array) for name, array in inputs.items()}
        outs = {name: fenced(np.zeros_like(array)) for name, array in expected.items()}
        network.call(ins, outs, 0, 1)
        os._exit(0 if all(np.array_equal(outs[name], expected[name]) for name in expected) else 3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"killed by signal {-status}" if status < 0 else "wrong results"
