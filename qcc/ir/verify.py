"""The rules that a graph at each stage keeps; the pipeline checks them after every pass."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from qcc.errors import QccError, VerifyError
from qcc.ir.expr import parse as parse_expr
from qcc.ir.expr import variables
from qcc.ir.graph import Graph, Op, Stage, Value
from qcc.ir.opset import OPSET, OpSpec
from qcc.ir.types import Const


def _is_int(a: Any) -> bool:
    return isinstance(a, int) and not isinstance(a, bool)


def _is_number(a: Any) -> bool:
    return _is_int(a) or isinstance(a, float)


_ATTR: Final[Mapping[str, Callable[[Any], bool]]] = {
    "int": _is_int,
    "float": _is_number,
    "bool": lambda a: isinstance(a, bool),
    "str": lambda a: isinstance(a, str),
    "const": lambda a: isinstance(a, Const),
    "ints": lambda a: isinstance(a, tuple) and all(map(_is_int, a)),
    "numbers": lambda a: isinstance(a, tuple) and all(map(_is_number, a)),
}

_ELEMENTS: Final[Mapping[Stage, frozenset[str]]] = {
    Stage.FLOAT: frozenset({"f32", "i64"}),
    Stage.QUANTIZED: frozenset({"f32", "i64"}),
    Stage.INTEGER: frozenset({"u8", "i8", "u16", "i16", "i32", "i64"}),
}


def verify(graph: Graph) -> None:
    """Raise VerifyError unless ``graph`` keeps every rule of its stage.

    Single assignment and definition before use hold by construction; here each operation must be
    legal at the stage, have the operands and attributes that its specification names, and carry
    exactly the result type that inference gives.
    """
    for value in graph.inputs:
        _check_element(graph.stage, value, f"input %{value.name}")
    for o in graph.ops:
        try:
            _check_op(graph.stage, o)
        except VerifyError:
            raise
        except (QccError, IndexError, ValueError, TypeError, KeyError) as e:
            raise VerifyError(f"{o}: malformed: {e}") from e


def _check_op(stage: Stage, o: Op) -> None:
    spec = OPSET.get(o.kind)
    if spec is None:
        raise VerifyError(f"{o}: unknown operation '{o.kind}'")
    if stage not in spec.stages:
        raise VerifyError(f"{o}: not legal at stage {stage}")
    _check_arity(o, spec)
    _check_attrs(o, spec)
    if len(o.results) != 1:
        raise VerifyError(f"{o}: must have one result, has {len(o.results)}")
    _check_element(stage, o.result, str(o))
    inferred = spec.shape(o)
    if inferred != o.result.type.shape:
        raise VerifyError(f"{o}: result has shape {o.result.type.shape}, inference gives {inferred}")
    if o.kind == "constant":
        if o.array.dtype != o.result.type.numpy:
            raise VerifyError(f"{o}: holds {o.array.dtype}, its type says {o.result.type.dtype}")
    elif stage is Stage.INTEGER:
        _check_integer(o, spec)
    elif o.kind in ("conv2d", "dense", "conv_transpose2d"):
        _check_layer(o)
    if o.kind == "map":
        expected = {"x", *(f"p{i}" for i in range(len(o.operands) - 1))}
        if extra := variables(parse_expr(o.str_attr("fn"))) - expected:
            raise VerifyError(f"{o}: expression names {', '.join(sorted(extra))}, which no operand gives")


def _check_element(stage: Stage, value: Value, where: str) -> None:
    if value.type.dtype not in _ELEMENTS[stage]:
        raise VerifyError(f"{where}: element type {value.type.dtype} is not legal at stage {stage}")


def _check_arity(o: Op, spec: OpSpec) -> None:
    slots = spec.operands
    optional = next((i for i, s in enumerate(slots) if "?" in s), len(slots))
    count = len(o.operands)
    if slots and slots[-1].endswith("*"):
        ok = count >= optional if optional < len(slots) else count >= len(slots)
    else:
        ok = count in (optional, len(slots))
    if not ok:
        raise VerifyError(f"{o}: takes operands ({', '.join(slots)}), got {count}")


def _check_attrs(o: Op, spec: OpSpec) -> None:
    for name, kind in spec.attrs.items():
        if name not in o.attrs:
            if not kind.endswith("?"):
                raise VerifyError(f"{o}: attribute '{name}' is missing")
        elif not _ATTR[kind.removesuffix("?")](o.attrs[name]):
            raise VerifyError(f"{o}: attribute '{name}' must be {kind.removesuffix('?')}, got {o.attrs[name]!r}")
    if unknown := sorted(set(o.attrs) - set(spec.attrs)):
        raise VerifyError(f"{o}: unknown attribute '{unknown[0]}'")


def _check_layer(o: Op) -> None:
    channels = o.result.type.shape[-1 if o.kind == "dense" else 1]
    if o.operands[2].type.shape != (channels,):
        raise VerifyError(f"{o}: bias %{o.operands[2].name} must have shape ({channels},)")
    _check_residual(o, 3)


def _check_residual(o: Op, slot: int) -> None:
    if len(o.operands) > slot and o.operands[slot].type.shape != o.result.type.shape:
        raise VerifyError(f"{o}: residual %{o.operands[slot].name} must have the result's shape")


def _check_integer(o: Op, spec: OpSpec) -> None:
    result = o.result.type
    first = o.operands[0].type
    if spec.results is None:
        if any(v.type.dtype != result.dtype for v in o.operands):
            raise VerifyError(f"{o}: operands and result must share one element type")
        if any(v.type.quant != result.quant for v in o.operands):
            raise VerifyError(f"{o}: moves codes, so operands and result must share one grid")
    elif result.dtype not in spec.results:
        raise VerifyError(f"{o}: result type {result.dtype} is not one of {', '.join(sorted(spec.results))}")
    if o.kind in ("pad", "dilate2d") and first.quant is None:
        raise VerifyError(f"{o}: needs a grid, for its zero point")
    for name, attr in o.attrs.items():
        if any(isinstance(a, float) for a in (attr if isinstance(attr, tuple) else (attr,))):
            raise VerifyError(f"{o}: attribute '{name}' holds a float: {attr!r}")
    if "shift" in spec.attrs:
        _check_requantization(o, spec)
    if o.kind in ("ilookup", "isoftmax"):
        _check_table(o)


def _check_requantization(o: Op, spec: OpSpec) -> None:
    low, high = o.int_attr("qmin"), o.int_attr("qmax")
    info = np.iinfo(o.result.type.numpy)
    if not 0 < o.int_attr("shift") <= 32:
        raise VerifyError(f"{o}: shift must be in 1..32, got {o.int_attr('shift')}")
    if not info.min <= low <= high <= info.max:
        raise VerifyError(f"{o}: clamp [{low}, {high}] is empty, or leaves {o.result.type.dtype}")
    for value, dtype in zip(o.operands, _epilogue_types(o, spec), strict=True):
        if dtype and value.type.dtype != dtype:
            raise VerifyError(f"{o}: operand %{value.name} must be {dtype}, is {value.type.dtype}")
    if o.kind in ("iconv2d", "idense"):
        channels = o.operands[1].type.shape[0]
        for value in (*o.operands[2:4], *o.operands[5:]):
            if math.prod(value.type.shape) not in (1, channels) or value.type.rank > 1:
                raise VerifyError(f"{o}: %{value.name} must hold one entry, or one per output channel ({channels})")
        _check_residual(o, 4)


def _check_table(o: Op) -> None:
    x, table = (v.type for v in o.operands)
    if x.dtype not in ("u8", "i8"):
        raise VerifyError(f"{o}: %{o.operands[0].name} must be u8 or i8, is {x.dtype}")
    wanted = "i32" if o.kind == "isoftmax" else o.result.type.dtype
    per_channel = o.kind == "ilookup" and x.rank > 1 and table.shape == (x.shape[1], 256)
    if table.dtype != wanted or not (table.shape == (256,) or per_channel):
        raise VerifyError(f"{o}: its table is {table}; it takes 256x{wanted}, or for a lookup a row per channel")


def _epilogue_types(o: Op, spec: OpSpec) -> list[str | None]:
    """The element type that each operand slot demands; None where any code type will do."""
    if o.kind == "ilinear":
        if len(o.operands) % 2 == 0:
            raise VerifyError(f"{o}: takes c and pairs of x, m")
        return ["i64"] + [None, "i32"] * ((len(o.operands) - 1) // 2)
    demand = {"m": "i32", "mr": "i32", "c": "i64"}
    return [demand.get(s.rstrip("?*")) for s in spec.operands[: len(o.operands)]]
