"""The border in machine code: reals to codes and back, in a library of its own, which alone holds floats.

Inputs: it computes what ``qcc.artifact.border.quantize_input`` defines, clamp(rint(float64(x) / scale) +
zero point), by a multiplication. That is exact for float32 x and a scale whose multiplier has at most 24
bits: x / scale then is a tie (k + 1/2) or at least 2**-27 away from one, as long as it is below 2**17;
x * (1 / scale) is within 2**-34 of it; and adding 1.5 * 2**22 rounds that to a multiple of 2**-30,
which a tie survives and nothing else reaches. What is larger is clamped. Outputs: the very operations
of ``dequantize_output``.

Three more functions serve a whole call of the network, with one argument:

    void qcc_encode(call)    codes of all inputs
    void qcc_decode(call)    reals of all outputs
    void qcc_call(call)      encodes, calls the network, decodes

``call`` is a table of 64-bit words, mostly addresses: see ``qcc.runtime.tvm_call.Slots``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, Final

from tvm import tirx
from tvm.ir import PointerType, PrimType, StringImm
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc.artifact.contents import tensor_spec
from qcc.artifact.manifest import TensorSpec
from qcc.ir.graph import Graph, Value
from qcc.runtime.tvm_call import CALL, DECODE, ENCODE, Slots, encoded

_SNAP: Final = 1.5 * 2**22
_INFINITY: Final = 0x7F800000
_MAGNITUDE: Final = 0x7FFFFFFF

_INDIRECT: Final = "qcc_indirect"


def border_functions(graph: Graph, batch: int) -> Mapping[str, tirx.PrimFunc]:
    """The functions of the border library for calls of ``batch`` samples; none where nothing has a grid.

    ``quantize_<type>`` for every type of codes that a bordered input has, and those of a whole call.
    """
    if not any(v.type.quant for v in (*graph.inputs, *graph.outputs)):
        return {}
    steps = _Calls(graph, batch)
    calls = {ENCODE: steps.encode, DECODE: steps.decode, CALL: steps.call}
    return {
        **{f"quantize_{t}": _quantize(t) for t in _types(bordered(graph))},
        **{f"dequantize_{t}": _dequantize(t) for t in _types(v for v in graph.outputs if v.type.quant)},
        **{name: _step(name, body) for name, body in calls.items()},
    }


def bordered(graph: Graph) -> list[Value]:
    """The inputs that the border library quantizes: those with a grid and codes of up to 16 bits."""
    return [v for v in graph.inputs if v.type.quant is not None and v.type.numpy.itemsize <= 2]


def _types(values: Iterable[Value]) -> list[str]:
    return sorted({v.type.numpy.name for v in values})


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
        source = _elements(x, "float32")
        target = _elements(codes, dtype)
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


def _dequantize(dtype: str) -> tirx.PrimFunc:
    """(codes, reals, count, scale, zero point)."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(f"dequantize_{dtype}")
        T.func_attr({"tirx.noalias": True})
        pointers = (("codes", dtype), ("reals", "float32"))
        codes, reals = (T.arg(name, tirx.Var(name, PointerType(PrimType(t)))) for name, t in pointers)
        scalars = {"count": "int64", "scale": "float64", "zero": "float64"}
        count, scale, zero = (T.arg(name, tirx.Var(name, t)) for name, t in scalars.items())
        source, target = _elements(codes, dtype), _elements(reals, "float32")
        with T.serial(T.int64(0), count) as i:
            wide = T.cast(source[i], "float64") - zero
            T.buffer_store(target, T.cast(wide * scale, "float32"), [i])
    return ib.get()


def _opaque(value: Any) -> Any:
    """``value``, hidden from TVM's simplifier, which would take (a + b) - b for a."""
    return T.reinterpret("float64", T.reinterpret("int64", value))


def _elements(pointer: Any, dtype: str) -> Any:
    return T.decl_buffer((1 << 40,), dtype, data=pointer, layout=None)


def _step(name: str, body: Callable[[Any], Any]) -> tirx.PrimFunc:
    """The function of the table ``call`` that ``body`` writes."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": False})
        call = T.arg("call", tirx.Var("call", PointerType(PrimType("int64"))))
        body(_elements(call, "int64"))
    return ib.get()


class _Calls:
    """Writes the bodies of the functions of a whole call."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self._inputs = [tensor_spec(v) for v in graph.inputs]
        self._outputs = [tensor_spec(v) for v in graph.outputs]
        self._slots = Slots(len(self._inputs), len(self._outputs))
        self._batch = batch

    def encode(self, call: Any) -> None:
        nan = T.alloc_buffer((1,), "int32", scope="global")
        any_nan = T.alloc_buffer((1,), "int32", scope="global")
        T.buffer_store(any_nan, T.int32(0), [0])
        for i, spec in enumerate(self._inputs):
            if spec.quant is None or not encoded(spec):
                continue  # the caller gives codes
            zero = spec.quant.zero_point
            T.evaluate(
                tirx.call_extern(
                    "void",
                    f"quantize_{spec.dtype}",
                    _pointer(call, self._slots.input(i)),
                    _pointer(call, self._slots.input_codes(i)),
                    T.int64(self._size(spec)),
                    T.float64(1.0 / spec.quant.scale),
                    T.float64(float(spec.qmin - zero)),
                    T.float64(float(spec.qmax - zero)),
                    T.int32(zero),
                    tirx.address_of(nan[0]),
                )
            )
            T.buffer_store(any_nan, any_nan[0] | nan[0], [0])
        T.buffer_store(call, T.cast(any_nan[0], "int64"), [self._slots.nan])

    def decode(self, call: Any) -> None:
        for i, spec in enumerate(self._outputs):
            if spec.quant is None:
                continue
            T.evaluate(
                tirx.call_extern(
                    "void",
                    f"dequantize_{spec.dtype}",
                    _pointer(call, self._slots.output_codes(i)),
                    _pointer(call, self._slots.output(i)),
                    T.int64(self._size(spec)),
                    T.float64(spec.quant.scale),
                    T.float64(float(spec.quant.zero_point)),
                )
            )

    def call(self, call: Any) -> None:
        """Encode, call the network through its address, decode."""
        slots = self._slots
        arguments = [
            *(slots.input_codes(i) if encoded(s) else slots.input(i) for i, s in enumerate(self._inputs)),
            *(slots.output_codes(i) if s.quant else slots.output(i) for i, s in enumerate(self._outputs)),
            slots.constants,
            slots.arena,
        ]
        text = _TRAMPOLINE.format(
            declared=", ".join(f"ptr %a{i}" for i in range(len(arguments) + 1)),
            passed=", ".join(f"ptr %a{i}" for i in range(1, len(arguments) + 1)),
        )
        with T.attr(tirx.IntImm("int32", 0), "pragma_import_llvm", StringImm(text)):
            T.evaluate(tirx.call_extern("void", ENCODE, call.data))
            pointers = [_pointer(call, slot) for slot in (slots.network, *arguments)]
            T.evaluate(tirx.call_extern("void", _INDIRECT, *pointers))
            T.evaluate(tirx.call_extern("void", DECODE, call.data))

    def _size(self, spec: TensorSpec) -> int:
        return prod(self._batch if d is None else d for d in spec.shape)


_TRAMPOLINE: Final = """
define void @qcc_indirect({declared}) alwaysinline {{
  call void %a0({passed})
  ret void
}}
"""
"""TensorIR has no call through an address."""


def _pointer(call: Any, slot: int) -> Any:
    return T.reinterpret("handle", call[slot])
