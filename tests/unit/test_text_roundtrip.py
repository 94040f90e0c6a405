"""parse(render(g)) is g, and bad text is refused with its line."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.errors import ParseError, VerifyError
from qcc.ir.graph import Graph, Op, Stage, Value, constant, op
from qcc.ir.layout import Blocks, Widths
from qcc.ir.text import const_store, parse, render
from qcc.ir.types import BATCH, DTYPES, Const, Dyadic, Quant, TensorType
from qcc.verify.fuzz_graphs import make_case

Array = NDArray[Any]

NAMES = st.text(st.sampled_from("abcXYZ019_:/.-;[]{}<>=#'\"é"), min_size=1, max_size=12)
DIMS = st.lists(st.integers(0, 9), max_size=4).map(tuple)
REALS = st.floats(width=32, allow_nan=False)
ATTRS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.booleans(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=4).map(tuple),
    st.lists(st.floats(allow_nan=False), min_size=1, max_size=4).map(tuple),
)


@st.composite
def quants(draw: st.DrawFn, shape: tuple[int, ...]) -> Quant | None:
    if draw(st.booleans()):
        return None
    axes = [a for a, d in enumerate(shape) if d > 0]
    axis = draw(st.one_of(st.none(), st.sampled_from(axes))) if axes else None
    count = shape[axis] if axis is not None else 1
    scales = draw(
        st.lists(st.builds(Dyadic, st.integers(1, 2**24), st.integers(-100, 190)), min_size=count, max_size=count)
    )
    bits, signed = draw(st.integers(2, 32)), draw(st.booleans())
    layout = draw(layouts(shape))
    if isinstance(layout, Blocks):
        return Quant(draw(st.integers(2, 7)), True, tuple(scales), 0, axis, layout)
    if layout is not None:
        bits = max(b for _, b in layout.runs)
    plain = Quant(bits, signed, (Dyadic(1, 0),))
    zero = 0 if axis is not None else draw(st.integers(plain.qmin, plain.qmax))
    return Quant(bits, signed, tuple(scales), zero, axis, layout)


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...]) -> Blocks | Widths | None:
    axes = [a for a, d in enumerate(shape) if d > 0]
    way = draw(st.integers(0, 2))
    if len(shape) > 1 and way == 1:
        return Blocks(draw(st.integers(1, 600)), draw(st.integers(1, 3)))
    if axes and way == 2:
        axis = draw(st.sampled_from(axes))
        return Widths.of(axis, np.array(draw(st.lists(st.integers(2, 8), min_size=shape[axis], max_size=shape[axis]))))
    return None


@st.composite
def types(draw: st.DrawFn) -> TensorType:
    shape = draw(DIMS)
    if draw(st.booleans()):
        shape = (BATCH, *shape)
    return TensorType(shape, draw(st.sampled_from(sorted(DTYPES))), draw(quants(shape)))


@st.composite
def constants(draw: st.DrawFn, name: str) -> Op:
    shape = draw(st.lists(st.integers(0, 4), max_size=3).map(tuple))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    size = int(np.prod(shape))
    if dtype.kind == "f":
        elements: Any = draw(st.lists(REALS, min_size=size, max_size=size))
    else:
        info = np.iinfo(dtype)
        elements = draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=size, max_size=size))
    return constant(name, np.array(elements, dtype).reshape(shape), quant=draw(quants(shape)))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph that stands by construction, whether or not its operations mean anything."""
    names = draw(st.lists(NAMES, min_size=2, max_size=8, unique=True))
    split = draw(st.integers(0, min(3, len(names) - 1)))
    values = [Value(n, draw(types())) for n in names[:split]]
    inputs, ops = tuple(values), []
    for name in names[split:]:
        if not values or draw(st.booleans()):
            made = draw(constants(name))
        else:
            operands = draw(st.lists(st.sampled_from(values), max_size=3))
            attrs = draw(st.dictionaries(st.from_regex(r"[a-z]\w{0,6}", fullmatch=True), ATTRS, max_size=3))
            kind = draw(st.sampled_from(["conv2d", "add", "my.op"]))
            made = op(kind, operands, [Value(name, draw(types()))], **{f"a{k}": v for k, v in attrs.items()})
        ops.append(made)
        values.append(made.result)
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    return Graph(draw(NAMES), draw(st.sampled_from(list(Stage))), inputs, tuple(ops), tuple(outputs))


def same(a: Graph, b: Graph) -> bool:
    return (a.name, a.stage, a.inputs, a.ops, a.outputs) == (b.name, b.stage, b.inputs, b.ops, b.outputs)


@settings(deadline=None, derandomize=True, max_examples=120, database=None)
@given(graphs())
def test_parsing_what_was_rendered_gives_the_graph(graph: Graph) -> None:
    text = render(graph)
    again = parse(text, const_store(graph))
    assert render(again) == text
    assert same(again, graph)


def test_random_integer_graphs_survive_the_round_trip() -> None:
    for index in range(60):
        graph = make_case(2, index).graph
        assert same(parse(render(graph), const_store(graph)), graph)


def test_comments_and_blank_lines_are_skipped() -> None:
    text = "# a comment\n\ngraph @g float(%x: 2xf32) {\n\n# another\n  return %x\n}\n"
    assert parse(text).outputs[0].name == "x"


GOOD = """graph @g float(%x: Nx2xf32) {
  %k: 2xf32 = constant() {"value": [1.0, 2.0]}
  %y: Nx2xf32 = add(%x, %k)
  return %y
}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("graph @g float", "module @g", "line 1: expected 'graph"),
        ("float(", "middle(", "line 1: expected 'graph"),
        ("add(%x, %k)", "add(%x, %z)", "line 3: undefined value %z"),
        ("return %y", "return %z", "line 4: undefined value %z"),
        ("  %y: Nx2xf32 = add", "  y = add", "line 3: not an operation"),
        ("[1.0, 2.0]", "[1.0, 2.0", "line 2: bad attributes"),
        ("[1.0, 2.0]", "[1.0]", "does not fit 2xf32"),
        ("[1.0, 2.0]", '"sha256:feed"', "is not in the store"),
        ("[1.0, 2.0]", "null", "does not fit 2xf32"),
        ("%y: Nx2xf32", "%y: Nx2xf64", "line 3: %y: unknown element type"),
        ("%y: Nx2xf32", "%y: Nx2xf32 qu8<0*2^0:0>", "line 3: %y: dyadic scale out of range"),
        ("%y: Nx2xf32", "%y: Nx2xf32 qu8<1*2^0:300>", "line 3: %y: zero point 300"),
        ("%y: Nx2xf32", "%y: Nx2xf32 qi8@1<1*2^0:0>", "line 3: %y: 1 scales do not fit axis 1"),
        ("%x: Nx2xf32", "%x: 2xNxf32", "line 1: "),
        ("add(%x, %k)", 'add(%x, %k) {"lo": null}', "line 3: attribute|attribute None"),
        ("  return %y\n", "", "graph has no return|not an operation"),
    ],
)
def test_bad_text_is_refused(old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises((ParseError, VerifyError), match=message):
        parse(GOOD.replace(old, new))


def test_constants_are_looked_up_by_digest() -> None:
    big = constant("k", np.arange(17, dtype=np.int16))
    graph = Graph("g", Stage.INTEGER, (), (big,), (big.result,))
    assert f"sha256:{Const(big.array).digest}" in render(graph)
    with pytest.raises(ParseError, match="is not in the store"):
        parse(render(graph))
