"""The numpy reference executor: the definition of every operation at every stage.

The rules live by family: ``interp_move`` (every stage), ``interp_real`` (FLOAT and QUANTIZED) and
``interp_integer`` (INTEGER). Whatever else runs a graph must agree with them, at INTEGER on every bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Graph, Op, Value
from qcc.ir.types import BATCH, Quant, TensorType
from qcc.verify.blas import one_thread
from qcc.verify.interp_integer import INTEGER
from qcc.verify.interp_move import MOVE, Rule
from qcc.verify.interp_real import REAL

Array = NDArray[Any]

RULES: Final[Mapping[str, Rule]] = {**MOVE, **REAL, **INTEGER}

_WORKING_SET: Final = 64 << 20
"""Bytes that one step may touch; larger batches run in parts, which changes no result."""


def evaluate(graph: Graph, inputs: Mapping[str, Array], *, keep: Iterable[str] = ()) -> dict[str, Array]:
    """The graph's outputs, and the values that ``keep`` names, by name.

    ``inputs`` maps every graph input to an array of its element type and shape, with any batch.
    At stage QUANTIZED inputs and weights are snapped to their grids when read, and results to theirs.
    Raises VerifyError when names, shapes or element types do not fit.
    """
    wanted = [*dict.fromkeys([*(v.name for v in graph.outputs), *keep])]
    types = _types(graph)
    if unknown := [name for name in wanted if name not in types]:
        raise VerifyError(f"graph @{graph.name} has no value %{unknown[0]}")
    batch = _check_inputs(graph, inputs)
    env = {v.name: _snap(v.type, inputs[v.name]) for v in graph.inputs}
    step = max(1, _WORKING_SET // max(map(_work, graph.ops), default=1))
    with one_thread():
        if batch is None:
            return _run(graph, env, wanted)
        parts = [
            _run(graph, {v.name: _part(v, env[v.name], start, start + step) for v in graph.inputs}, wanted)
            for start in range(0, max(batch, 1), step)
        ]
    return {name: _join(types[name], [p[name] for p in parts]) for name in wanted}


def evaluate_op(o: Op, operands: Sequence[Array]) -> Array:
    """The result of ``o``, snapped to its type's grid when that is real (stage QUANTIZED).

    ``operands`` are arrays as the operands' types say, with any batch. Raises VerifyError when the
    operation is unknown, or an array does not fit its operand's type.
    """
    for value, array in zip(o.operands, operands, strict=True):
        _check(str(o), value, array)
    batch = next((len(a) for v, a in zip(o.operands, operands, strict=True) if _batched(v.type)), None)
    step = max(1, _WORKING_SET // _work(o))
    parts = []
    with one_thread():
        if batch is None or batch <= step:
            return _apply(o, operands)
        for start in range(0, batch, step):
            some = [_part(v, a, start, start + step) for v, a in zip(o.operands, operands, strict=True)]
            parts.append(_apply(o, some))
    return _join(o.result.type, parts)


def _run(graph: Graph, env: dict[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
    """Evaluate in order; a value is dropped after its last reader."""
    last = {v.name: i for i, o in enumerate(graph.ops) for v in o.operands}
    kept = set(wanted)
    for i, o in enumerate(graph.ops):
        env[o.result.name] = _apply(o, [env[v.name] for v in o.operands])
        for v in (*o.operands, o.result):
            if last.get(v.name, i) == i and v.name not in kept:
                env.pop(v.name, None)
    return {name: env[name] for name in wanted}


def _apply(o: Op, operands: Sequence[Array]) -> Array:
    rule = RULES.get(o.kind)
    if rule is None:
        raise VerifyError(f"{o}: the reference executor knows no operation '{o.kind}'")
    result = rule(o, operands)
    target = o.result.type
    moved = o.kind in MOVE and o.operands and all(v.type.quant == target.quant for v in o.operands)
    return result if moved else _snap(target, result)


def _snap(type_: TensorType, real: Array) -> Array:
    """Reals moved to the grid that their type names; codes and grid-less reals stay as they are."""
    if type_.quant is None or type_.dtype != "f32":
        return real
    return snap(type_.quant, real)


_BLOCK: Final = 1 << 15


def snap(quant: Quant, real: Array) -> Array:
    """``quant.dequantize(quant.quantize(real))``, in float64 blocks that stay in cache."""
    if quant.axis is not None or quant.layout is not None:
        return quant.dequantize(quant.quantize(real))
    scale, zero = float(quant.scale[0]), quant.zero_point
    low, high = float(quant.qmin - zero), float(quant.qmax - zero)
    flat = np.ascontiguousarray(real).reshape(-1)
    out = np.empty(flat.size, np.float32)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK].astype(np.float64)
        block /= scale
        np.rint(block, out=block)
        np.clip(block, low, high, out=block)
        np.multiply(block, scale, out=out[start : start + _BLOCK], casting="same_kind")
    return out.reshape(real.shape)


def _types(graph: Graph) -> dict[str, TensorType]:
    return {v.name: v.type for v in (*graph.inputs, *(o.result for o in graph.ops))}


def _check_inputs(graph: Graph, inputs: Mapping[str, Array]) -> int | None:
    """The batch, or None when no input has one."""
    names = [v.name for v in graph.inputs]
    if extra := sorted(set(inputs) - set(names)):
        raise VerifyError(f"graph @{graph.name} has no input '{extra[0]}'; its inputs: {', '.join(names) or 'none'}")
    batch: int | None = None
    for v in graph.inputs:
        if v.name not in inputs:
            raise VerifyError(f"graph @{graph.name}: no array for the input '{v.name}'")
        _check(f"graph @{graph.name}", v, inputs[v.name])
        if _batched(v.type):
            size = len(inputs[v.name])
            if batch is not None and size != batch:
                raise VerifyError(f"graph @{graph.name}: inputs have batches {batch} and {size}")
            batch = size
    return batch


def _check(where: str, value: Value, array: Array) -> None:
    type_ = value.type
    if array.dtype != type_.numpy:
        raise VerifyError(f"{where}: %{value.name} takes {type_.numpy}, got {array.dtype}")
    fits = len(array.shape) == type_.rank and all(
        d in (BATCH, a) for d, a in zip(type_.shape, array.shape, strict=True)
    )
    if not fits:
        shape = ", ".join("N" if d == BATCH else str(d) for d in type_.shape)
        raise VerifyError(f"{where}: %{value.name} takes shape [{shape}], got {list(array.shape)}")


def _batched(type_: TensorType) -> bool:
    return type_.shape[:1] == (BATCH,)


def _part(value: Value, array: Array, start: int, stop: int) -> Array:
    return array[start:stop] if _batched(value.type) else array


def _join(type_: TensorType, parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 or not _batched(type_) else np.concatenate(parts)


def _work(o: Op) -> int:
    """A bound on the bytes per sample that evaluating ``o`` touches, patches of a convolution included."""
    sizes = [math.prod(abs(d) for d in v.type.shape) for v in (*o.operands, o.result) if _batched(v.type)]
    patches = 0
    if o.kind in ("conv2d", "iconv2d"):
        depth, *kernel = o.operands[1].type.shape[1:]
        depthwise = depth == 1 and o.int_attr("groups") > 1
        channels = 0 if depthwise else o.operands[0].type.shape[1]
        patches = channels * math.prod(kernel) * math.prod(o.result.type.shape[2:])
    return 8 * (sum(sizes) + patches) or 1
