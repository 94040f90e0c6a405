"""Exported graphs hold weights below 8 bits packed, and onnxruntime unpacks them exactly."""

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from qcc.frontend.export import export_onnx
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Stage
from qcc.ir.packing import lowest, packed_size
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel

CONV: dict[str, Any] = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
GRID = Quant(8, False, (Dyadic(1, 4),), 7)


def network(bits: int, rng: np.random.Generator) -> Graph:
    """A convolution of 29 x 9 x 3 x 3 weights and a dense layer of 71 x 37, no multiple of 8."""
    low = lowest("i8", bits)
    b = GraphBuilder("packed", Stage.INTEGER)
    end: dict[str, Any] = {"quant": GRID, "shift": 32, "qmin": 0, "qmax": 255}

    def operands(name: str, *shape: int) -> list[Any]:
        codes = rng.integers(low, -low, shape).astype(np.int8)
        w = b.constant(codes, name, quant=Quant(bits, True, (Dyadic(1, 7),) * shape[0], axis=0))
        m = b.constant(rng.integers(1 << 20, 1 << 24, shape[0]).astype(np.int32), f"{name}m")
        return [w, m, b.constant(rng.integers(0, 200 << 32, shape[0]), f"{name}c")]

    image, row = b.input("image", (BATCH, 9, 5, 4), "u8", GRID), b.input("row", (BATCH, 37), "u8", GRID)
    results = [
        b.op("iconv2d", [image, *operands("w", 29, 9, 3, 3)], **end, **CONV),
        b.op("idense", [row, *operands("v", 71, 37)], **end),
    ]
    return b.graph(results)


@pytest.mark.parametrize("bits", range(2, 9))
def test_packed_initializers_give_the_same_results(bits: int) -> None:
    rng = np.random.default_rng(bits)
    graph = network(bits, rng)
    model = export_onnx(graph)
    inputs = {v.name: rng.integers(0, 256, (2, *v.type.shape[1:]), dtype=np.uint8) for v in graph.inputs}
    wanted = evaluate(graph, inputs)
    for optimize in (True, False):
        got = OrtModel(model, threads=1, optimize=optimize).run(inputs)
        assert all(np.array_equal(got[name], array) for name, array in wanted.items())
    sizes = [numpy_helper.to_array(t).nbytes for t in model.graph.initializer]
    for count in (29 * 81, 71 * 37):
        padded = -(-packed_size(count, bits) // bits) * bits if count - packed_size(count, bits) >= 1024 else count
        assert padded in sizes
