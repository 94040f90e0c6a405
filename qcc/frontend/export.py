"""Graphs of every stage as standard ONNX.

FLOAT becomes float operators and QUANTIZED the same between QuantizeLinear and DequantizeLinear pairs,
with weights stored as per-channel integer codes. INTEGER becomes integer operators only, which
onnxruntime executes bit for bit as the reference does, with its optimizations on or off.

The same graph gives the same bytes. Value names are kept; the batch stays dynamic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx

from qcc.errors import UnsupportedError, VerifyError
from qcc.frontend.export_builder import Builder
from qcc.frontend.export_integer import INTEGER
from qcc.frontend.export_move import MOVE, Rule
from qcc.frontend.export_real import REAL
from qcc.ir.graph import Graph, Op, Stage, Value
from qcc.ir.types import DTYPES, Quant

RULES: Final[Mapping[str, Rule]] = {**MOVE, **REAL, **INTEGER}


def export_onnx(graph: Graph, *, keep: Sequence[str] = ()) -> onnx.ModelProto:
    """The graph as ONNX; ``keep`` names further values to expose as outputs.

    At QUANTIZED, values on grids wider than 16 bits stay real: QuantizeLinear has no such type.
    Raises VerifyError when ``keep`` names no value or an accumulator may overflow, UnsupportedError
    when an operand that ONNX needs as a constant is computed.
    """
    values = {v.name: v for v in (*graph.inputs, *(o.result for o in graph.ops))}
    if unknown := [name for name in keep if name not in values]:
        raise VerifyError(f"graph @{graph.name} has no value %{unknown[0]}")
    outputs = list({v.name: v for v in (*graph.outputs, *(values[name] for name in keep))}.values())
    b = Builder(graph)
    exposed = {v.name for v in outputs}
    for value in graph.inputs:
        _read(b, value)
    for o in graph.ops:
        if o.kind == "constant":
            _store(b, o, exposed)
        else:
            _append(b, o, exposed)
    return b.model(graph.name, graph.inputs, outputs)


def _append(b: Builder, o: Op, exposed: set[str]) -> None:
    rule = RULES.get(o.kind)
    if rule is None:
        raise UnsupportedError((f"{o}: has no ONNX form",))
    tensor = rule(b, o, [b.tensor(v) for v in o.operands])
    if (quant := grid(o.result, b.stage)) is not None:
        tensor = _snapped(b, o.result, tensor, quant)
    elif o.result.name in exposed and b.carrier(o.result.type) != o.result.type.numpy:
        b.bind(o.result, tensor)
        b.rename(b.cast(tensor, o.result.type.numpy, f"{o.result.name}/narrow"), o.result.name)
        return
    b.rename(tensor, o.result.name)
    b.bind(o.result, o.result.name)


def grid(value: Value, stage: Stage) -> Quant | None:
    """The grid that QuantizeLinear snaps a real value to, if it has one that ONNX can hold."""
    quant = value.type.quant
    return quant if stage is Stage.QUANTIZED and quant is not None and quant.bits <= 16 else None


def _read(b: Builder, value: Value) -> None:
    quant = grid(value, b.stage)
    if quant is not None:
        b.bind(value, _snapped(b, value, value.name, quant))
    elif b.carrier(value.type) != value.type.numpy:
        b.bind(value, b.cast(value.name, b.carrier(value.type), f"{value.name}/wide"))
    else:
        b.bind(value, value.name)


def _store(b: Builder, o: Op, exposed: set[str]) -> None:
    value, quant = o.result, grid(o.result, b.stage)
    if quant is not None:
        codes = b.initializer(b.fresh(f"{value.name}/codes"), quant.quantize(o.array))
        b.rename(_dequantized(b, value, codes, quant), value.name)
    elif b.carrier(value.type) == value.type.numpy:
        b.initializer(value.name, o.array)
    else:
        wide = b.initializer(b.fresh(f"{value.name}/wide"), o.array.astype(b.carrier(value.type)))
        b.bind(value, wide)
        if value.name in exposed:
            b.initializer(value.name, o.array)
        return
    b.bind(value, value.name)


def _snapped(b: Builder, value: Value, tensor: str, quant: Quant) -> str:
    if quant.bits not in (8, 16):
        limits = [(q - quant.zero_point) * float(quant.scale[0]) for q in (quant.qmin, quant.qmax)]
        bounds = [b.scalar(limit, np.float32, "limit") for limit in limits]
        tensor = b.node("Clip", [tensor, *bounds], f"{value.name}/limited")
    codes = b.node("QuantizeLinear", [tensor, *_parameters(b, quant)], f"{value.name}/codes", **_axis(quant))
    return _dequantized(b, value, codes, quant)


def _dequantized(b: Builder, value: Value, codes: str, quant: Quant) -> str:
    return b.node("DequantizeLinear", [codes, *_parameters(b, quant)], f"{value.name}/real", **_axis(quant))


def _axis(quant: Quant) -> dict[str, int]:
    return {} if quant.axis is None else {"axis": quant.axis}


def _parameters(b: Builder, quant: Quant) -> tuple[str, str]:
    scale = np.array([float(s) for s in quant.scale], np.float32)
    zero = np.full(scale.shape, quant.zero_point, DTYPES[quant.dtype])
    if quant.axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    return b.const(scale, "scale"), b.const(zero, "zero_point")
