"""GraphBuilder infers types, names values apart, and yields verified graphs."""

import numpy as np
import pytest

from qcc.errors import VerifyError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Stage
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import BATCH, Dyadic, Quant


def test_infers_shapes_and_names_values_apart() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 3, 8, 8))
    w = b.constant(np.ones((4, 3, 3, 3), np.float32), "w")
    bias = b.constant(np.zeros(4, np.float32), "w")
    y = b.op("conv2d", (x, w, bias), name="y", strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), groups=1)
    top = b.op("argmax", (y,), axis=1, keepdims=False)
    graph = b.graph((top,))
    assert (bias.name, y.type.shape, top.type.dtype) == ("w_1", (BATCH, 4, 6, 6), "i64")
    assert render(parse(render(graph), const_store(graph))) == render(graph)
    assert b.producer(x) is None
    assert b.producer(y) is graph.ops[2]


def test_integer_results_take_their_element_type_from_the_grid() -> None:
    b = GraphBuilder("net", Stage.INTEGER)
    grid = Quant(8, False, (Dyadic(1, 4),), 3)
    x = b.input("x", (BATCH, 4), "u8", grid)
    table = b.constant(np.zeros(256, np.uint8), "t")
    assert b.op("ilookup", (x, table), quant=grid).type.dtype == "u8"
    assert b.op("reshape", (x,), quant=grid, shape=(BATCH, 2, 2)).type.dtype == "u8"
    with pytest.raises(VerifyError, match="give dtype or quant"):
        b.op("ilookup", (x, table))


def test_refuses_what_does_not_fit() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 3))
    with pytest.raises(VerifyError, match="unknown operation 'frobnicate'"):
        b.op("frobnicate", (x,))
    with pytest.raises(VerifyError, match="cannot take the shape"):
        b.op("reshape", (x,), shape=(BATCH, 4))
    with pytest.raises(VerifyError, match="reshape %"):
        b.op("reshape", (x,))
    with pytest.raises(VerifyError, match="malformed"):
        b.op("dilate2d", (x,), factors=(1, 1))


def test_prune_drops_what_no_output_needs() -> None:
    b = GraphBuilder("net")
    x = b.input("x", (BATCH, 3))
    b.op("clip", (x,), lo=0.0)
    y = b.op("clip", (x,), name="y", hi=6.0)
    assert [o.result.name for o in b.graph((y,), prune=True).ops] == ["y"]
