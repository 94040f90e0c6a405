"""Graph inputs: element types, and what their unknown dimensions are bound to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from onnx import TensorProto, ValueInfoProto

from qcc.errors import ModelError
from qcc.frontend.tensors import element_name
from qcc.ir.types import BATCH

_REAL: Final = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
_SMALL: Final = {TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16, TensorProto.BOOL}
_LARGE: Final = {TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32}

Declared = tuple[int | str | None, ...]
"""A declared shape: sizes, symbols, and None for a dimension that is not named at all."""


@dataclass(frozen=True, slots=True)
class Input:
    """``dtype`` is how the graph carries the input; ``mark`` the model's type where that is an integer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    mark: str | None


def bind_inputs(
    infos: Sequence[ValueInfoProto], batch: int | None, shapes: Mapping[str, Sequence[int]]
) -> tuple[list[Input], list[str]]:
    """The inputs with their dimensions bound, and notes on what was assumed.

    A leading unknown dimension is the batch: ``batch``, or symbolic. Any other must be given by
    ``shapes`` (per input name; -1 leaves a dimension as declared), directly or through a symbol
    that two inputs share. Raises ModelError where one stays unknown or a given size contradicts
    the model.
    """
    declared = {info.name: _declared_shape(info, shapes) for info in infos}
    if unknown := sorted(set(shapes) - set(declared)):
        raise ModelError(f"a shape is given for '{unknown[0]}', but the inputs are {', '.join(declared) or 'none'}")
    leading = [s[0] for s in declared.values() if s and isinstance(s[0], str)]
    symbols = _symbols(declared, shapes)
    if batch is not None:
        fixed = {s[0] for s in declared.values() if s}
        if all(isinstance(d, int) for d in fixed) and fixed - {batch}:
            raise ModelError(f"the model fixes its batch at {min(map(str, fixed - {batch}))}, {batch} is given")
        symbols |= {s: batch for s in leading if s not in symbols}
    notes = []
    free = sorted({s for s in leading if s not in symbols})
    if len(free) > 1:
        notes.append(f"leading dimensions {', '.join(free)} are taken to be one batch")
    inputs = []
    for info in infos:
        shape = _bound(info.name, declared[info.name], shapes.get(info.name), symbols, batch)
        inputs.append(_typed(info, shape, notes))
    return inputs, notes


def _declared_shape(info: ValueInfoProto, shapes: Mapping[str, Sequence[int]]) -> Declared:
    if info.type.WhichOneof("value") != "tensor_type":
        raise ModelError(f"input '{info.name}' is not a dense tensor")
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        if info.name not in shapes:
            raise ModelError(f"input '{info.name}' has no declared shape; give it, as --shape {info.name}=1,3,224,224")
        return (None,) * len(shapes[info.name])
    dims: list[int | str | None] = []
    for axis, dim in enumerate(tensor.shape.dim):
        which = dim.WhichOneof("value")
        if which == "dim_value" and dim.dim_value == 0:
            raise ModelError(f"input '{info.name}' has size 0 at axis {axis}")
        if which == "dim_value" and dim.dim_value > 0:
            dims.append(dim.dim_value)
        else:
            dims.append(dim.dim_param or None)
    return tuple(dims)


def _symbols(declared: Mapping[str, Declared], shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """What the given shapes say about symbols."""
    symbols: dict[str, int] = {}
    for name, given in shapes.items():
        dims = declared[name]
        if len(given) != len(dims):
            raise ModelError(f"input '{name}' has rank {len(dims)}, the given shape {list(given)} has {len(given)}")
        for dim, size in zip(dims, given, strict=True):
            if size < 1 and size != BATCH:
                raise ModelError(f"input '{name}': size {size} in the given shape {list(given)} is not positive")
            if isinstance(dim, str) and size != BATCH and symbols.setdefault(dim, size) != size:
                raise ModelError(f"dimension '{dim}' is given as {symbols[dim]} and as {size}")
    return symbols


def _bound(
    name: str, declared: Declared, given: Sequence[int] | None, symbols: Mapping[str, int], batch: int | None
) -> tuple[int, ...]:
    shape: list[int] = []
    for axis, dim in enumerate(declared):
        size = given[axis] if given is not None and given[axis] != BATCH else None
        if isinstance(dim, int):
            if size not in (None, dim):
                raise ModelError(f"input '{name}' has size {dim} at axis {axis} in the model, {size} is given")
            shape.append(dim)
            continue
        if size is None and isinstance(dim, str):
            size = symbols.get(dim)
        if size is None and axis == 0:
            size = BATCH if batch is None else batch
        if size is None:
            example = ",".join(
                str(d) if isinstance(d, int) else ("-1" if a == 0 else "64") for a, d in enumerate(declared)
            )
            what = f"'{dim}' " if dim else ""
            raise ModelError(
                f"input '{name}': dimension {what}at axis {axis} is dynamic and has no size; "
                f"give it, as --shape {name}={example}"
            )
        shape.append(size)
    return tuple(shape)


def _typed(info: ValueInfoProto, shape: tuple[int, ...], notes: list[str]) -> Input:
    elem = info.type.tensor_type.elem_type
    word = element_name(elem)
    if elem in _REAL:
        if elem != TensorProto.FLOAT:
            notes.append(f"input '{info.name}' is {word} in the model and float32 here")
        return Input(info.name, shape, "f32", None)
    if elem in _SMALL:
        notes.append(f"input '{info.name}' is {word} in the model and float32 here, with the same values")
        return Input(info.name, shape, "f32", word)
    if elem in _LARGE:
        return Input(info.name, shape, "i64", None)
    raise ModelError(f"input '{info.name}': element type {word} is not supported")
