"""What a graph at each stage may not hold: one broken rule at a time."""

import pytest

from qcc.errors import ParseError, VerifyError
from qcc.ir.graph import Graph, Stage, Value, op
from qcc.ir.text import parse
from qcc.ir.types import TensorType
from qcc.ir.verify import verify

FLOAT = """graph @f float(%x: Nx4x6x5xf32) {
  %w: 2x2x3x3xf32 = constant() {"value": "W"}
  %b: 2xf32 = constant() {"value": [0, 0]}
  %h: Nx2x4x3xf32 = conv2d(%x, %w, %b) {"strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "groups": 2}
  %p: 2x1x1xf32 = constant() {"value": [[[0.1]], [[0.2]]]}
  %y: Nx2x4x3xf32 = map(%h, %p) {"fn": "mul(x, p0)"}
  %z: Nx2x4x3xf32 = avg_pool2d(%y) {"kernel": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], \
"ceil_pads": [0, 0], "count_include_pad": false, "lo": 0.0}
  %v: Nx6x4x3xf32 = concat(%z, %z, %h) {"axis": 1}
  return %v
}
""".replace('"W"', str([[[[0.0] * 3] * 3] * 2] * 2))

INTEGER = """graph @i integer(%x: Nx4xu8 qu8<1*2^-4:7>, %r: Nx2xi8 qi8<1*2^-3:0>) {
  %w: 2x4xi8 = constant() {"value": [[1, 2, 3, 4], [5, 6, 7, 8]]}
  %m: 2xi32 = constant() {"value": [1, 2]}
  %c: 2xi64 = constant() {"value": [1, 2]}
  %k: 1xi32 = constant() {"value": [3]}
  %h: Nx2xu8 qu8<1*2^-2:0> = idense(%x, %w, %m, %c, %r, %k) {"shift": 8, "qmin": 0, "qmax": 255}
  %l: Nx2xi16 qi16<1*2^-2:0> = ilinear(%c, %h, %m, %r, %k) {"shift": 8, "qmin": -300, "qmax": 300}
  %p: Nx5xu8 qu8<1*2^-4:7> = pad(%x) {"pads": [0, 0, 0, 1], "values": [7]}
  %s: Nx1xu8 qu8<1*2^-4:7> = slice(%p) {"axis": 1, "start": 4, "stop": 5, "step": 1}
  %a: Nxi64 = argmax(%l) {"axis": 1, "keepdims": false}
  return %a, %s
}
"""


def test_the_good_graphs_stand() -> None:
    verify(parse(FLOAT))
    verify(parse(INTEGER))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("= conv2d(", "= fft(", "unknown operation 'fft'"),
        ("= conv2d(", "= iconv2d(", "not legal at stage float"),
        ("conv2d(%x, %w, %b)", "conv2d(%x, %w)", r"takes operands \(x, w, b, r\?\), got 2"),
        (', "groups": 2', "", "attribute 'groups' is missing"),
        ('"groups": 2', '"groups": 2.0', "attribute 'groups' must be int, got 2.0"),
        ('"groups": 2', '"groups": true', "attribute 'groups' must be int, got True"),
        ('"groups": 2', '"groups": 3', "channels do not fit 3 groups"),
        ('"groups": 2', '"groups": 0', "channels do not fit 0 groups"),
        ('"groups": 2', '"groups": 2, "mode": 1', "unknown attribute 'mode'"),
        ('"groups": 2', '"groups": 2, "lo": "a"', "attribute 'lo' must be float"),
        ("%h: Nx2x4x3xf32", "%h: Nx2x4x4xf32", r"result has shape \(-1, 2, 4, 4\), inference gives \(-1, 2, 4, 3\)"),
        ("%h: Nx2x4x3xf32", "%h: Nx2x4x3xi32", "element type i32 is not legal at stage float"),
        ("%x: Nx4x6x5xf32", "%x: Nx4x6x5xu8", "input %x: element type u8 is not legal at stage float"),
        ("%b: 2xf32 =", "%b: 2xi64 =", None),
        ('%b: 2xf32 = constant() {"value": [0, 0]}', '%b: 3xf32 = constant() {"value": [0, 0, 0]}', "%b must"),
        ("conv2d(%x, %w, %b)", "conv2d(%x, %w, %b, %x)", "residual %x must have the result's shape"),
        ("mul(x, p0)", "mul(x, p1)", "expression names p1"),
        ("mul(x, p0)", "mul(x,", "ends early|takes 2"),
        ("%p: 2x1x1xf32 = constant() {\"value\": [[[0.1]], [[0.2]]]}",
         "%p: 3x1x1xf32 = constant() {\"value\": [[[0.1]], [[0.2]], [[0.3]]]}", "do not broadcast"),
        ('"axis": 1', '"axis": 0', "bad axis 0"),
        ('"axis": 1', '"axis": 4', "bad axis 4|malformed"),
        ('"ceil_pads": [0, 0], ', "", "attribute 'ceil_pads' is missing"),
    ],
)  # fmt: skip
def test_broken_float_graphs_are_refused(old: str, new: str, message: str | None) -> None:
    assert FLOAT.count(old) == 1
    graph = parse(FLOAT.replace(old, new))
    if message is None:
        verify(graph)
        return
    with pytest.raises((VerifyError, ParseError), match=message):
        verify(graph)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("= idense(", "= dense(", "not legal at stage integer"),
        ("%x: Nx4xu8 qu8<1*2^-4:7>", "%x: Nx4xf32 qu8<1*2^-4:7>", "input %x: element type f32 is not legal"),
        ("%m: 2xi32", "%m: 2xf32", "element type f32 is not legal at stage integer"),
        ("%m: 2xi32", "%m: 2xi16", "operand %m must be i32, is i16"),
        ("%c: 2xi64", "%c: 2xi32", "operand %c must be i64, is i32"),
        ("%k: 1xi32", "%k: 1xi8", "operand %k must be i32, is i8"),
        ('%m: 2xi32 = constant() {"value": [1, 2]}', '%m: 1x2xi32 = constant() {"value": [[1, 2]]}', "must hold one"),
        ('%k: 1xi32 = constant() {"value": [3]}', '%k: 3xi32 = constant() {"value": [3, 3, 3]}', r"channel \(2\)"),
        ("%r: Nx2xi8", "%r: Nx1xi8", "residual %r must have the result's shape"),
        ('"shift": 8, "qmin": 0', '"shift": 0, "qmin": 0', "shift must be in 1..32, got 0"),
        ('"shift": 8, "qmin": 0', '"shift": 33, "qmin": 0', "shift must be in 1..32, got 33"),
        ('"qmin": 0', '"qmin": 0.0', "attribute 'qmin' must be int"),
        ('"qmin": 0', '"qmin": 256', r"clamp \[256, 255\] is empty"),
        ('"qmin": 0', '"qmin": -1', r"clamp \[-1, 255\] is empty, or leaves u8"),
        ("ilinear(%c, %h, %m, %r, %k)", "ilinear(%c, %h, %m, %r)", "takes c and pairs of x, m"),
        ("ilinear(%c, %h, %m, %r, %k)", "ilinear(%c, %h, %r, %h, %k)", "operand %r must be i32"),
        ("%p: Nx5xu8", "%p: Nx5xi8", "operands and result must share one element type"),
        ("%p: Nx5xu8 qu8<1*2^-4:7>", "%p: Nx5xu8 qu8<1*2^-4:8>", "must share one grid"),
        ('"values": [7]', '"values": [7.0]', "attribute 'values' holds a float"),
        ("%l: Nx2xi16", "%l: Nx2xi64", "result type i64 is not one of"),
        ("%a: Nxi64", "%a: Nxi32", "result type i32 is not one of i64"),
        ('"stop": 5', '"stop": 6', "bad range 4:6:1"),
    ],
)  # fmt: skip
def test_broken_integer_graphs_are_refused(old: str, new: str, message: str) -> None:
    assert INTEGER.count(old) == 1
    with pytest.raises((VerifyError, ParseError), match=message):
        verify(parse(INTEGER.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"strides": [1, 1]', '"strides": [0, 1]', "kernel, strides and dilations must be positive pairs"),
        ('"strides": [1, 1]', '"strides": [1]', "kernel, strides and dilations must be positive pairs"),
        ('"dilations": [1, 1]', '"dilations": [1, -1]', "kernel, strides and dilations must be positive pairs"),
        ('"kernel": [1, 1]', '"kernel": [1, 0]', "kernel, strides and dilations must be positive pairs"),
        ('"pads": [0, 0, 0, 0]', '"pads": [0, 0]', "pads must be four, none negative"),
        ('"pads": [0, 0, 0, 0]', '"pads": [0, 0, 0, -1]', "pads must be four, none negative"),
    ],
)
def test_windows_are_checked_before_anything_divides_by_them(old: str, new: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(parse(FLOAT.replace(old, new)))


TABLES = """graph @t integer(%x: Nx3xu8 qu8<1*2^0:0>, %t: 256xi8, %e: 256xi32, %p: 3x256xi8) {
  %y: Nx3xi8 = ilookup(%x, %t)
  %z: Nx3xi8 = ilookup(%x, %p)
  %s: Nx3xu8 = isoftmax(%x, %e) {"axis": 1}
  return %y, %z, %s
}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Nx3xu8 qu8", "Nx3xu16 qu16", "%x must be u8 or i8, is u16"),
        ("%t: 256xi8", "%t: 255xi8", "its table is 255xi8; it takes 256xi8"),
        ("%t: 256xi8", "%t: 256xu8", "its table is 256xu8; it takes 256xi8"),
        ("%p: 3x256xi8", "%p: 2x256xi8", "its table is 2x256xi8"),
        ("%e: 256xi32", "%e: 256xi16", "its table is 256xi16; it takes 256xi32"),
        ("%e: 256xi32", "%e: 3x256xi32", "its table is 3x256xi32"),
    ],
)
def test_tables_must_fit(old: str, new: str, message: str) -> None:
    verify(parse(TABLES))
    with pytest.raises(VerifyError, match=message):
        verify(parse(TABLES.replace(old, new)))


def test_padding_needs_a_grid() -> None:
    text = INTEGER.replace(" qu8<1*2^-4:7>", "")
    with pytest.raises(VerifyError, match="needs a grid, for its zero point"):
        verify(parse(text))


def test_construction_refuses_what_is_not_single_assignment() -> None:
    x, y = Value("x", TensorType((2,), "f32")), Value("y", TensorType((2,), "f32"))
    clip = op("clip", [x], [y])
    with pytest.raises(VerifyError, match="%y is defined twice"):
        Graph("g", Stage.FLOAT, (x,), (clip, clip), (y,))
    with pytest.raises(VerifyError, match="%x is used before it is defined"):
        Graph("g", Stage.FLOAT, (), (clip,), (y,))
    with pytest.raises(VerifyError, match="used before it is defined, or with another type"):
        Graph("g", Stage.FLOAT, (x.typed(shape=(3,)),), (clip,), (y,))
    with pytest.raises(VerifyError, match="output %z is never defined"):
        Graph("g", Stage.FLOAT, (x,), (clip,), (Value("z", y.type),))
    with pytest.raises(VerifyError, match="two graph inputs share one name"):
        Graph("g", Stage.FLOAT, (x, x), (clip,), (y,))
