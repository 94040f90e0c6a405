"""Random operations that move codes or choose among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qcc.errors import VerifyError
from qcc.ir.graph import Value
from qcc.ir.types import Quant, TensorType
from qcc.verify.fuzz_draw import ROOM, Draw, elements

Maker = Callable[[Draw, Value], Value]
"""Appends an operation that reads the value. Raises VerifyError when it cannot."""


def require(ok: bool, what: str) -> None:
    if not ok:
        raise VerifyError(f"fuzz: {what}")


def window(d: Draw, x: Value, *, small_pads: bool = False) -> dict[str, tuple[int, ...]]:
    """Kernel, strides, pads and dilations that fit the map; padding may exceed the kernel unless ``small_pads``."""
    require(x.type.rank == 4, "windows need [N, C, H, W]")
    kernel = tuple(d.between(1, 4 if d.chance(0.3) else 3) for _ in range(2))
    dilations = tuple(2 if d.chance(0.15) else 1 for _ in range(2))
    reach = [min(k, 3) - 1 if small_pads else k for k in kernel]
    pads = tuple(d.between(0, r) if d.chance(0.6) else 0 for r in (*reach, *reach))
    strides = tuple(d.between(1, 3) if d.chance(0.4) else 1 for _ in range(2))
    return {"kernel": kernel, "strides": strides, "pads": pads, "dilations": dilations}


def some_axis(d: Draw, x: Value) -> int:
    """An axis other than the batch."""
    require(x.type.rank > 1, "needs an axis beside the batch")
    return d.between(1, x.type.rank - 1)


def some_axes(d: Draw, x: Value) -> tuple[int, ...]:
    if x.type.rank == 4 and d.chance(0.5):
        return (2, 3)
    return tuple(sorted({some_axis(d, x) for _ in range(d.between(1, 3))}))


def _max_pool2d(d: Draw, x: Value) -> Value:
    return d.emit("max_pool2d", [x], x.type, **window(d, x, small_pads=d.chance(0.8)))


def _reduce_max(d: Draw, x: Value) -> Value:
    return d.emit("reduce_max", [x], x.type, axes=some_axes(d, x), keepdims=d.chance(0.5))


def _concat(d: Draw, x: Value) -> Value:
    axis = some_axis(d, x)
    parts = [x]
    for _ in range(d.between(1, 3)):
        alike = [v for v in d.values if v.type == x.type]
        shape = [d.between(1, 5) if a == axis else n for a, n in enumerate(x.type.shape)]
        parts.append(d.pick(alike) if d.chance(0.5) else d.input(shape, x.type.dtype, x.type.quant))
    require(sum(map(elements, parts)) <= ROOM, "too large")
    return d.emit("concat", parts, x.type, axis=axis)


def _slice(d: Draw, x: Value) -> Value:
    axis = some_axis(d, x)
    size = x.type.shape[axis]
    start = d.below(size)
    return d.emit("slice", [x], x.type, axis=axis, start=start, stop=d.between(start + 1, size), step=d.between(1, 3))


def _pad(d: Draw, x: Value) -> Value:
    quant, shape = grid_of(x), x.type.shape
    require(elements(x) <= ROOM // 4, "too large")
    pads = [0 if a == 0 or d.chance(0.4) else d.between(0, 2) for a in (*range(len(shape)), *range(len(shape)))]
    count = shape[1] if len(shape) > 1 and d.chance(0.3) else 1
    values = [quant.zero_point if d.chance(0.3) else d.between(quant.qmin, quant.qmax) for _ in range(count)]
    return d.emit("pad", [x], x.type, pads=tuple(pads), values=tuple(values))


def grid_of(x: Value) -> Quant:
    if x.type.quant is None:
        raise VerifyError(f"fuzz: %{x.name} has no grid")
    return x.type.quant


def _reshape(d: Draw, x: Value) -> Value:
    """Merge two neighbouring axes, or split one; the batch stays apart."""
    shape = list(x.type.shape)
    at = some_axis(d, x)
    if at + 1 < len(shape) and d.chance(0.6):
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    else:
        factor = d.pick([f for f in range(1, shape[at] + 1) if shape[at] % f == 0])
        shape[at : at + 1] = [factor, shape[at] // factor]
    require(len(shape) <= 5, "too many axes")
    return d.emit("reshape", [x], x.type, shape=tuple(shape))


def _transpose(d: Draw, x: Value) -> Value:
    rest = [int(a) + 1 for a in d.rng.permutation(x.type.rank - 1)]
    return d.emit("transpose", [x], x.type, perm=(0, *rest))


def _gather(d: Draw, x: Value) -> Value:
    axis = some_axis(d, x)
    indices = [d.below(x.type.shape[axis]) for _ in range(d.between(1, 8))]
    require(elements(x) * len(indices) <= ROOM * x.type.shape[axis], "too large")
    return d.emit("gather", [x], x.type, axis=axis, indices=tuple(indices))


def _dilate2d(d: Draw, x: Value) -> Value:
    require(x.type.rank == 4 and elements(x) * 9 <= ROOM, "needs a small [N, C, H, W]")
    grid_of(x)
    return d.emit("dilate2d", [x], x.type, factors=(d.between(1, 3), d.between(1, 3)))


def _argmax(d: Draw, x: Value) -> Value:
    return d.emit("argmax", [x], TensorType((), "i64"), axis=some_axis(d, x), keepdims=d.chance(0.5))


MOVERS: Final[Mapping[str, Maker]] = {
    "max_pool2d": _max_pool2d,
    "reduce_max": _reduce_max,
    "concat": _concat,
    "slice": _slice,
    "pad": _pad,
    "reshape": _reshape,
    "transpose": _transpose,
    "gather": _gather,
    "dilate2d": _dilate2d,
    "argmax": _argmax,
}
