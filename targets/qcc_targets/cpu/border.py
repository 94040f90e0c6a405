"""The border in machine code: reals to codes, in a library of its own, which alone holds floats.

It computes what ``qcc.artifact.border.quantize_input`` defines, clamp(rint(float64(x) / scale) + zero
point), by a multiplication. That is exact for float32 x and a scale whose multiplier has at most 24
bits: x / scale then is a tie (k + 1/2) or at least 2**-27 away from one, as long as it is below 2**17;
x * (1 / scale) is within 2**-34 of it; and adding 1.5 * 2**22 rounds that to a multiple of 2**-30,
which a tie survives and nothing else reaches. What is larger is clamped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tvm import tirx
from tvm.ir import PointerType, PrimType
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.ir.graph import Graph, Value

_SNAP: Final = 1.5 * 2**22
_INFINITY: Final = 0x7F800000
_MAGNITUDE: Final = 0x7FFFFFFF


def border_functions(graph: Graph) -> Mapping[str, tirx.PrimFunc]:
    """``quantize_<type>`` for every type of codes that a bordered input has."""
    types = sorted({v.type.numpy.name for v in bordered(graph)})
    return {f"quantize_{t}": _quantize(t) for t in types}


def bordered(graph: Graph) -> list[Value]:
    """The inputs that the border library quantizes: those with a grid and codes of up to 16 bits."""
    return [v for v in graph.inputs if v.type.quant is not None and v.type.numpy.itemsize <= 2]


def _quantize(dtype: str) -> tirx.PrimFunc:
    """(x, codes, count, 1 / scale, lowest and highest code less zero point, zero point, nan: 1 if x holds NaN)."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(f"quantize_{dtype}")
        T.func_attr({"tirx.noalias": True})
        pointers = (("x", "float32"), ("codes", dtype))
        x, codes = (T.arg(name, tirx.Var(name, PointerType(PrimType(t)))) for name, t in pointers)
        scalars = {"count": "int64", "inverse": "float64", "low": "float64", "high": "float64", "zero": "int32"}
        count, inverse, low, high, zero = (T.arg(name, tirx.Var(name, t)) for name, t in scalars.items())
        flag = T.arg("flag", tirx.Var("flag", PointerType(PrimType("int32"))))
        source = T.decl_buffer((1 << 40,), "float32", data=x, layout=None)
        target = T.decl_buffer((1 << 40,), dtype, data=codes, layout=None)
        nan = T.alloc_buffer((1,), "int32", scope="global")
        T.buffer_store(nan, T.int32(0), [0])
        with T.serial(T.int64(0), count) as i:
            magnitude = T.reinterpret("int32", source[i]) & T.int32(_MAGNITUDE)
            T.buffer_store(nan, nan[0] | T.Select(magnitude > T.int32(_INFINITY), T.int32(1), T.int32(0)), [0])
            snapped = _opaque(T.cast(source[i], "float64") * inverse + T.float64(_SNAP)) - T.float64(_SNAP)
            nearest = tirx.nearbyint(T.max(T.min(snapped, high), low))
            T.buffer_store(target, T.cast(T.cast(nearest, "int32") + zero, dtype), [i])
        T.buffer_store(T.decl_buffer((1,), "int32", data=flag, layout=None), nan[0], [0])
    return ib.get()


def _opaque(value: Any) -> Any:
    """``value``, hidden from TVM's simplifier, which would take (a + b) - b for a."""
    return T.reinterpret("float64", T.reinterpret("int64", value))
