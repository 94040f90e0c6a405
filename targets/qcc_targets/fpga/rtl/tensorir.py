"""Reading a scheduled function: its loops, its accumulations, its stores, and affine indices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import TargetError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """``constant`` plus coefficient times loop variable, by its name."""

    constant: int
    coefficients: Mapping[str, int]

    def plus(self, other: Affine, factor: int = 1) -> Affine:
        names = {**self.coefficients, **other.coefficients}
        summed = {n: self.coefficients.get(n, 0) + factor * other.coefficients.get(n, 0) for n in names}
        return Affine(self.constant + factor * other.constant, {n: k for n, k in summed.items() if k})

    def times(self, factor: int) -> Affine:
        return Affine(self.constant * factor, {n: k * factor for n, k in self.coefficients.items() if k * factor})


@dataclass(frozen=True, slots=True)
class Loop:
    name: str
    extent: int


@dataclass(frozen=True, slots=True)
class Store:
    """A store inside ``loops`` (serial, outermost first), for one setting of the unrolled loops."""

    loops: tuple[Loop, ...]
    buffer: str
    index: Affine
    value: Any
    unrolled: Mapping[str, int]


def stores(func: Any) -> list[Store]:
    """All stores of a scheduled function in order, unrolled loops written out. Raises TargetError on other forms."""
    return list(_walk(func.body, (), {}))


def _walk(stmt: Any, loops: tuple[Loop, ...], unrolled: dict[str, int]) -> Iterator[Store]:
    kind = type(stmt).__name__
    if kind == "SeqStmt":
        for part in stmt.seq:
            yield from _walk(part, loops, unrolled)
    elif kind == "For":
        name, extent = _name(stmt.loop_var), int(stmt.extent)
        if int(stmt.min) != 0:
            raise TargetError(f"loop {name} of a scheduled function begins at {stmt.min}")
        if int(stmt.kind) == UNROLLED:
            for i in range(extent):
                yield from _walk(stmt.body, loops, {**unrolled, name: i})
        else:
            yield from _walk(stmt.body, (*loops, Loop(name, extent)), unrolled)
    elif kind == "BufferStore":
        index = flat_index(stmt.buffer, stmt.indices, unrolled)
        yield Store(loops, str(stmt.buffer.name), index, stmt.value, unrolled)
    elif kind != "AllocBuffer" and not (kind == "Evaluate" and type(stmt.value).__name__ == "IntImm"):
        raise TargetError(f"a scheduled function holds a statement {kind}, which has no hardware")


UNROLLED = 3
"""The kind of an unrolled loop in TensorIR."""


def _name(var: Any) -> str:
    return str(var.name)


def flat_index(buffer: Any, indices: Sequence[Any], unrolled: Mapping[str, int]) -> Affine:
    """The element of a dense array that ``indices`` mean."""
    shape = [int(d) for d in buffer.shape]
    total = Affine(0, {})
    for axis, index in enumerate(indices):
        total = total.plus(affine(index, unrolled), prod(shape[axis + 1 :]))
    return total


def affine(expr: Any, unrolled: Mapping[str, int]) -> Affine:
    """``expr`` over the serial loops. Raises TargetError where it is not affine."""
    kind = type(expr).__name__
    if kind == "IntImm":
        return Affine(int(expr.value), {})
    if kind == "Var":
        name = _name(expr)
        return Affine(unrolled[name], {}) if name in unrolled else Affine(0, {name: 1})
    if kind == "Cast":
        return affine(expr.value, unrolled)
    if kind in ("Add", "Sub"):
        return affine(expr.a, unrolled).plus(affine(expr.b, unrolled), 1 if kind == "Add" else -1)
    if kind == "Mul":
        a, b = affine(expr.a, unrolled), affine(expr.b, unrolled)
        if not a.coefficients or not b.coefficients:
            return b.times(a.constant) if not a.coefficients else a.times(b.constant)
    raise TargetError(f"index {expr} of a scheduled function is not affine")


def enumerate_index(index: Affine, loops: Sequence[Loop]) -> Array:
    """Values of ``index`` over all steps of ``loops``, the last the fastest."""
    total = np.full((), index.constant, np.int64)
    for loop in loops:
        step = np.arange(loop.extent) * index.coefficients.get(loop.name, 0)
        total = total[..., None] + step
    return total.reshape(-1)


def relevant(index: Affine, loops: Sequence[Loop]) -> tuple[Loop, ...]:
    """``loops`` without the outermost ones that ``index`` does not depend on: over these, it repeats."""
    kept = list(loops)
    while kept and not index.coefficients.get(kept[0].name, 0):
        kept.pop(0)
    return tuple(kept)
