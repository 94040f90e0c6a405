"""Textual IR: one operation per line, attributes as JSON. parse(render(g)) reproduces g.

Constants of up to 16 elements are written in place; larger ones as ``sha256:…``, to be looked up
in the store that ``parse`` is given.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from qcc.errors import ParseError, QccError, VerifyError
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, op
from qcc.ir.layout import Blocks, Widths
from qcc.ir.types import BATCH, DTYPES, Const, Dyadic, Quant, TensorType

_HEAD = re.compile(r"graph @(\S+?) (float|quantized|integer)\((.*)\) \{")
_OP = re.compile(r"  (%.+?) = ([\w.]+)\((.*?)\)(?: (\{.*\}))?")
_RET = re.compile(r"  return (.*)")
_NAME = re.compile(r"%([^\s,()]+)")
_QUANT = r"q([ui])(\d+)(?:@(\d+))?(?:\[([^\]]+)\])?<([^:>]+):(-?\d+)>"
_VALUE = re.compile(r"%([^\s,()]+): ((?:N|\d+)x)?((?:\d+x)*)([fui]\d+)(?: " + _QUANT + ")?")
_BLOCKS = re.compile(r"(\d+)\^(\d+)")
_WIDTHS = re.compile(r"(\d+)/(\d+:\d+(?:,\d+:\d+)*)")
_INLINE_LIMIT = 16


def render(graph: Graph) -> str:
    """The text of ``graph``: the same for equal graphs, on every machine."""
    lines = [f"graph @{graph.name} {graph.stage}({', '.join(map(_typed, graph.inputs))}) {{"]
    for o in graph.ops:
        attrs = " " + json.dumps({k: _attr_out(a) for k, a in o.attrs.items()}) if o.attrs else ""
        args = ", ".join(f"%{v.name}" for v in o.operands)
        lines.append(f"  {', '.join(map(_typed, o.results))} = {o.kind}({args}){attrs}")
    lines += [f"  return {', '.join(f'%{v.name}' for v in graph.outputs)}", "}", ""]
    return "\n".join(lines)


def const_store(graph: Graph) -> dict[str, Const]:
    """The constants that the text form names by hash, by digest."""
    consts = (a for o in graph.ops for a in o.attrs.values() if isinstance(a, Const))
    return {c.digest: c for c in consts if c.array.size > _INLINE_LIMIT}


def parse(text: str, store: Mapping[str, Const] | None = None) -> Graph:
    """The graph that ``text`` spells. Raises ParseError with the line, or VerifyError."""
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip() and not line.startswith("#")]
    if not lines or not (head := _HEAD.fullmatch(lines[0][1])):
        raise ParseError("line 1: expected 'graph @name stage(inputs) {'")
    inputs = _values(head[3], lines[0][0])
    env = {v.name: v for v in inputs}
    ops: list[Op] = []
    for number, line in lines[1:]:
        try:
            if m := _RET.fullmatch(line):
                outputs = tuple(env[n] for n in _names(m[1]))
                return Graph(head[1], Stage(head[2]), inputs, tuple(ops), outputs)
            if not (m := _OP.fullmatch(line)):
                raise ParseError(f"line {number}: not an operation: {line.strip()!r}")
            results = _values(m[1], number)
            raw = json.loads(m[4] or "{}")
            if m[2] == "constant":
                attrs: dict[str, Attr] = {"value": _const_in(raw.get("value"), results[0].type, store or {})}
            else:
                attrs = {k: _attr_in(a) for k, a in raw.items()}
            ops.append(op(m[2], [env[n] for n in _names(m[3])], results, **attrs))
        except KeyError as e:
            raise ParseError(f"line {number}: undefined value %{e.args[0]}") from None
        except json.JSONDecodeError as e:
            raise ParseError(f"line {number}: bad attributes: {e}") from None
        except VerifyError as e:
            raise ParseError(f"line {number}: {e}") from None
        env |= {v.name: v for v in results}
    raise ParseError("graph has no return")


def _typed(v: Value) -> str:
    return f"%{v.name}: {v.type}"


def _attr_out(attr: Attr) -> Any:
    if not isinstance(attr, Const):
        return attr
    return attr.array.tolist() if attr.array.size <= _INLINE_LIMIT else f"sha256:{attr.digest}"


def _const_in(raw: Any, type_: TensorType, store: Mapping[str, Const]) -> Const:
    if not isinstance(raw, str):
        try:
            return Const(np.array(raw, DTYPES[type_.dtype]).reshape(type_.shape))
        except (TypeError, ValueError, OverflowError):
            raise ParseError(f"constant {raw!r} does not fit {type_}") from None
    if (const := store.get(raw.removeprefix("sha256:"))) is None:
        raise ParseError(f"constant {raw[:19]}… is not in the store")
    return const


def _attr_in(raw: Any) -> Attr:
    if isinstance(raw, list):
        return tuple(raw)
    if isinstance(raw, (bool, int, float, str)):
        return raw
    raise ParseError(f"attribute {raw!r} is neither a number, text, nor a list of numbers")


def _names(text: str) -> list[str]:
    return _NAME.findall(text)


def _values(text: str, number: int) -> tuple[Value, ...]:
    out = []
    position = 0
    while position < len(text):
        if (m := _VALUE.match(text, position)) is None:
            raise ParseError(f"line {number}: not a typed value: {text[position : position + 60]!r}")
        name, first, dims, dtype, sign, bits, axis, layout, scales, zero = m.groups()
        shape = tuple(BATCH if d == "N" else int(d) for d in ((first or "") + dims).split("x")[:-1])
        try:
            quant = None
            if bits:
                scale = tuple(_dyadic(s) for s in scales.split(","))
                of_axis = int(axis) if axis else None
                quant = Quant(int(bits), sign == "i", scale, int(zero), of_axis, _layout(layout) if layout else None)
            out.append(Value(name, TensorType(shape, dtype, quant)))
        except (QccError, ValueError) as e:
            raise ParseError(f"line {number}: %{name}: {e}") from None
        position = m.end()
        if text.startswith(", ", position):
            position += 2
        elif position < len(text):
            raise ParseError(f"line {number}: expected ', ' before {text[position : position + 60]!r}")
    return tuple(out)


def _layout(text: str) -> Blocks | Widths:
    if m := _BLOCKS.fullmatch(text):
        return Blocks(int(m[1]), int(m[2]))
    if m := _WIDTHS.fullmatch(text):
        pairs = (run.split(":") for run in m[2].split(","))
        return Widths(int(m[1]), tuple((int(count), int(bits)) for count, bits in pairs))
    raise ParseError(f"[{text}] is neither blocks, such as [32^2], nor widths, such as [0/48:4,16:8]")


def _dyadic(text: str) -> Dyadic:
    mult, _, exponent = text.partition("*2^")
    return Dyadic(int(mult), -int(exponent))
