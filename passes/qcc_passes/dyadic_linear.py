"""Sums of products as integers: convolutions, matrix products, sums, products, rescaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import Op, Value
from qcc_passes.dyadic_lowering import Lowering, LoweringRule, grid, requant
from qcc_passes.dyadic_scale import scale, scales


def _layer(low: Lowering, o: Op) -> None:
    """conv2d and dense: m per output channel; the bias, unrounded, goes into c; a residual is one more term."""
    x, w, b, *residual = o.operands
    step_y, step_x = scale(grid(o.result, o)), scale(grid(x, o))
    channels = w.type.shape[0]
    steps = scales(grid(w, o))
    ratios = [s * step_x / step_y for s in (steps if len(steps) == channels else steps * channels)]
    side = [scale(grid(r, o)) / step_y for r in residual]
    end = requant(o, ratios + side)
    cancel = sum(end.multiplier(k) * grid(r, o).zero_point for k, r in zip(side, residual, strict=True))
    c = _each(_reals(low, o, b), lambda real: end.offset(str(o), real, cancel))
    operands = [low.read(x), low.read(w), low.give(o, "m", end.multipliers(ratios)), low.give(o, "c", c)]
    if residual:
        operands += [low.read(residual[0]), low.give(o, "mr", end.multipliers(side))]
    window = {k: a for k, a in o.attrs.items() if k not in ("lo", "hi")}
    low.emit("i" + o.kind, operands, o, **window, **end.attrs)


def _product(low: Lowering, o: Op) -> None:
    """matmul, and mul of two variables: one m for the product of codes."""
    a, b = o.operands
    ratio = scale(grid(a, o)) * scale(grid(b, o)) / scale(grid(o.result, o))
    end = requant(o, [ratio])
    m, c = low.give(o, "m", end.multipliers([ratio])), low.give(o, "c", np.array([end.offset(str(o))], np.int64))
    low.emit("i" + o.kind, [low.read(a), low.read(b), m, c], o, **end.attrs)


def _sum(low: Lowering, o: Op) -> None:
    """add, sub and clip: one term per variable; constants go into c."""
    signs = (1, -1) if o.kind == "sub" else (1, 1)
    terms = list(zip(o.operands, signs, strict=False))
    step_y = scale(grid(o.result, o))
    variables = [(v, sign * scale(grid(v, o)) / step_y) for v, sign in terms if low.array(v) is None]
    end = requant(o, [ratio for _, ratio in variables])
    cancel = sum(end.multiplier(ratio) * grid(v, o).zero_point for v, ratio in variables)
    addend: NDArray[Any] = np.zeros(1, np.float32)
    for v, sign in terms:
        if (array := low.array(v)) is not None:
            addend = sign * array
    c = _each(addend, lambda real: end.offset(str(o), real, cancel))
    operands: list[Value] = [low.give(o, "c", c)]
    for v, ratio in variables:
        operands += [low.read(v), low.give(o, "m", end.multipliers([ratio]))]
    low.emit("ilinear", operands, o, **end.attrs)


def _mul(low: Lowering, o: Op) -> None:
    """A constant factor is a multiplier per element; two variables are a product."""
    factors = [v for v in o.operands if low.array(v) is not None]
    if not factors:
        _product(low, o)
        return
    (x,) = (v for v in o.operands if low.array(v) is None)
    factor = _reals(low, o, factors[0])
    unit = scale(grid(x, o)) / scale(grid(o.result, o))
    end = requant(o, [Fraction(float(np.abs(factor).max())) * unit])
    m = _each(factor, lambda real: end.multiplier(real * unit)).astype(np.int32)
    c = _each(m, lambda k: end.offset(str(o), cancel=int(k) * grid(x, o).zero_point))
    operands = [low.give(o, "c", c), low.read(x), low.give(o, "m", m)]
    low.emit("ilinear", operands, o, **end.attrs)


def _reals(low: Lowering, o: Op, v: Value) -> NDArray[Any]:
    if (array := low.array(v)) is None:
        raise PassError(f"{o}: %{v.name} must be a constant")
    return array


def _each(array: NDArray[Any], number: Callable[[Fraction], int]) -> NDArray[np.int64]:
    """``number`` of every element's exact value, computed once per distinct one; at least one-dimensional."""
    array = np.atleast_1d(array)
    distinct, where = np.unique(array, return_inverse=True)
    found = np.array([number(Fraction(x)) for x in distinct.tolist()], np.int64)
    return found[where].reshape(array.shape)


RULES: Final[Mapping[str, LoweringRule]] = {
    "conv2d": _layer,
    "dense": _layer,
    "matmul": _product,
    "add": _sum,
    "sub": _sum,
    "clip": _sum,
    "mul": _mul,
}
