"""The operations: their operands, attributes and result types. ``qcc.verify.interp`` defines their values.

Tensors are logically [N, C, H, W] (or [N, ..., K] for dense); targets choose physical layouts.
``lo`` and ``hi``, where present, clamp a real result: a fused Relu is ``lo=0``.

At stage INTEGER every arithmetic operation ends in one dyadic requantization

    y = clamp((acc * m + c) >> shift, qmin, qmax)

with ``acc`` int32 over codes less their zero point, ``m`` int32, ``c`` int64 (bias, output zero
point and the rounding half at once), ``>>`` the floor shift of an int64, and ``qmin``/``qmax`` the
result's clamp. Zero points are those of the operands' types. Residuals ``r`` and the terms of
``ilinear`` are raw codes: ``c`` absorbs their zero points. ``m``, ``c`` and ``mr`` of iconv2d and
idense hold one entry per output channel, or one; those of the others broadcast to the result.
A ``pad`` at INTEGER gives its ``values`` as codes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from qcc.ir import shapes
from qcc.ir.graph import Op, Stage

REAL: Final = frozenset({Stage.FLOAT, Stage.QUANTIZED})
FLOAT: Final = frozenset({Stage.FLOAT})
INTEGER: Final = frozenset({Stage.INTEGER})
ANY: Final = frozenset(Stage)

_CODES: Final = frozenset({"u8", "i8", "u16", "i16", "i32"})


@dataclass(frozen=True, slots=True)
class OpSpec:
    """What the verifier knows of one kind of operation.

    ``operands`` names the operand slots; a trailing ``?`` marks the first slot of an optional
    tail (all of the tail or none), a trailing ``*`` a slot that repeats at least once.
    ``attrs`` maps attribute names to their types (``int``, ``ints``, ``numbers``, ``float``,
    ``bool``, ``str``, ``const``); a trailing ``?`` on the type makes one optional.
    """

    stages: frozenset[Stage]
    operands: tuple[str, ...]
    attrs: Mapping[str, str]
    shape: Callable[[Op], tuple[int, ...]]
    results: frozenset[str] | None = None
    """Element types that the result may have at stage INTEGER; None: that of the first operand."""


_WINDOW = {"strides": "ints", "pads": "ints", "dilations": "ints"}
_CONV = {**_WINDOW, "groups": "int"}
_CLAMP = {"lo": "float?", "hi": "float?"}
_REQUANT = {"shift": "int", "qmin": "int", "qmax": "int"}
_REDUCE = {"axes": "ints", "keepdims": "bool"}
_RESIZE = {"h0": "ints", "h1": "ints", "hf": "numbers", "w0": "ints", "w1": "ints", "wf": "numbers"}

OPSET: Final[Mapping[str, OpSpec]] = {
    # every stage
    "constant": OpSpec(ANY, (), {"value": "const"}, lambda o: tuple(o.array.shape)),
    # every stage: data movement, and order-preserving choice (exact on codes of one grid)
    "max_pool2d": OpSpec(ANY, ("x",), {"kernel": "ints", **_WINDOW}, shapes.pool2d),
    "reduce_max": OpSpec(ANY, ("x",), _REDUCE, shapes.reduced),
    "concat": OpSpec(ANY, ("x*",), {"axis": "int"}, shapes.concat),
    "slice": OpSpec(ANY, ("x",), {"axis": "int", "start": "int", "stop": "int", "step": "int"}, shapes.sliced),
    "pad": OpSpec(ANY, ("x",), {"pads": "ints", "values": "numbers"}, shapes.padded),
    "reshape": OpSpec(ANY, ("x",), {"shape": "ints"}, shapes.reshaped),
    "transpose": OpSpec(ANY, ("x",), {"perm": "ints"}, shapes.transposed),
    "gather": OpSpec(ANY, ("x",), {"axis": "int", "indices": "ints"}, shapes.gathered),
    "dilate2d": OpSpec(ANY, ("x",), {"factors": "ints"}, shapes.dilated),
    "argmax": OpSpec(ANY, ("x",), {"axis": "int", "keepdims": "bool"}, shapes.argmax, frozenset({"i64"})),
    # real arithmetic; r is a residual of the result's shape, added before the clamp
    "conv2d": OpSpec(REAL, ("x", "w", "b", "r?"), {**_CONV, **_CLAMP}, shapes.conv2d),
    "dense": OpSpec(REAL, ("x", "w", "b", "r?"), _CLAMP, shapes.dense),
    "matmul": OpSpec(REAL, ("a", "b"), {}, shapes.matmul),
    "add": OpSpec(REAL, ("a", "b"), _CLAMP, shapes.elementwise),
    "sub": OpSpec(REAL, ("a", "b"), _CLAMP, shapes.elementwise),
    "mul": OpSpec(REAL, ("a", "b"), _CLAMP, shapes.elementwise),
    "clip": OpSpec(REAL, ("x",), _CLAMP, shapes.same),
    "map": OpSpec(REAL, ("x", "p?*"), {"fn": "str"}, shapes.mapped),
    "avg_pool2d": OpSpec(
        REAL,
        ("x",),
        {"kernel": "ints", **_WINDOW, "ceil_pads": "ints", "count_include_pad": "bool", **_CLAMP},
        shapes.pool2d,
    ),
    "reduce_mean": OpSpec(REAL, ("x",), {**_REDUCE, **_CLAMP}, shapes.reduced),
    "reduce_sum": OpSpec(REAL, ("x",), {**_REDUCE, **_CLAMP}, shapes.reduced),
    "resize_linear": OpSpec(REAL, ("x",), {**_RESIZE, **_CLAMP}, shapes.resized),
    "softmax": OpSpec(REAL, ("x",), {"axis": "int"}, shapes.same),
    # as exporters write them; canonicalization removes them
    "div": OpSpec(FLOAT, ("a", "b"), {}, shapes.elementwise),
    "batch_norm": OpSpec(FLOAT, ("x", "scale", "bias", "mean", "var"), {"epsilon": "float"}, shapes.same),
    "conv_transpose2d": OpSpec(FLOAT, ("x", "w", "b"), {**_CONV, "output_padding": "ints"}, shapes.conv_transpose2d),
    # integer arithmetic
    "iconv2d": OpSpec(INTEGER, ("x", "w", "m", "c", "r?", "mr"), {**_CONV, **_REQUANT}, shapes.conv2d, _CODES),
    "idense": OpSpec(INTEGER, ("x", "w", "m", "c", "r?", "mr"), _REQUANT, shapes.dense, _CODES),
    "imatmul": OpSpec(INTEGER, ("a", "b", "m", "c"), _REQUANT, shapes.matmul, _CODES),
    # clamp((x1*m1 + x2*m2 + … + c) >> shift): rescale, add, subtract; x raw codes, all broadcast
    "ilinear": OpSpec(INTEGER, ("c", "xm*"), _REQUANT, shapes.elementwise, _CODES),
    "imul": OpSpec(INTEGER, ("a", "b", "m", "c"), _REQUANT, shapes.elementwise, _CODES),
    # table[code - lowest code of x's element type]; table [256], or [C, 256] over axis 1 of x
    "ilookup": OpSpec(INTEGER, ("x", "table"), {}, shapes.same, _CODES),
    # window sums of (x - zero point); m and c broadcast to the result
    "isum_pool2d": OpSpec(INTEGER, ("x", "m", "c"), {"kernel": "ints", **_WINDOW, **_REQUANT}, shapes.pool2d, _CODES),
    "ireduce_sum": OpSpec(INTEGER, ("x", "m", "c"), {**_REDUCE, **_REQUANT}, shapes.reduced, _CODES),
    # hf and wf in units of 2**-11: acc = sum of (x - zero point) * fh * fw over four neighbours
    "iresize_linear": OpSpec(INTEGER, ("x", "m", "c"), {**_RESIZE, **_REQUANT}, shapes.resized, _CODES),
    # e = table[max - x] (i32, [256], e <= 65535); y = min((e * (2**40 // sum e) + 2**31) >> 32, 255)
    "isoftmax": OpSpec(INTEGER, ("x", "table"), {"axis": "int"}, shapes.same, frozenset({"u8"})),
}
