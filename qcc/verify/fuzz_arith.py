"""Random integer arithmetic: sums of products, pooling, resizing, tables, softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from qcc.ir.graph import Value
from qcc.ir.types import BATCH, DTYPES, Dyadic, Quant, TensorType
from qcc.verify.fuzz_draw import ROOM, Array, Draw, elements
from qcc.verify.fuzz_move import Maker, require, some_axes, some_axis, window

_DEVIATION: Final = 0.29
"""Of a uniform variable, in units of its range."""


def spread(x: Value) -> float:
    """The deviation of uniform codes of ``x``; 32-bit codes are expected to use a part of their range."""
    bits = min(8 * DTYPES[x.type.dtype].itemsize, 20)
    return _DEVIATION * (1 << bits)


def _weights(d: Draw, shape: Sequence[int]) -> Value:
    """Signed codes of 2 to 8 bits, per-channel symmetric; now and then unsigned with a zero point, or 16 bits wide."""
    dtype = "i8" if d.chance(0.85) else d.pick(("u8", "i8", "i16"))
    codes = d.codes(dtype, shape)
    if dtype == "i8" and d.chance(0.8):
        bits = 8 if d.chance(0.6) else d.between(2, 7)
        narrow = (codes >> (8 - bits)).astype(codes.dtype)
        return d.const("w", narrow, Quant(bits, True, (Dyadic(1, 7),) * shape[0], axis=0))
    if d.chance(0.3):
        codes = (codes // 16).astype(codes.dtype)
    return d.const("w", codes, d.grid(dtype) if dtype != "i16" else Quant(16, True, (Dyadic(1, 7),)))


def _per_channel(d: Draw, channels: int) -> tuple[int, ...]:
    return (channels,) if d.chance(0.8) else (1,)


def _linear(d: Draw, kind: str, x: Value, w: Array, operand: Value, **attrs: tuple[int, ...] | int) -> Value:
    """The epilogue of iconv2d and idense, with a residual in a third of the cases."""
    end = d.ending()
    deviation = spread(x) * float(np.sqrt(np.square(w.reshape(len(w), -1), dtype=np.float64).sum(axis=1).mean()))
    shape = _per_channel(d, len(w))
    operands = [x, operand, d.multipliers(end, deviation, shape), d.offsets(end, shape)]
    if d.chance(0.33):
        residual = d.other(d.shape(kind, operands, **attrs))
        operands += [residual, d.multipliers(end, spread(residual), _per_channel(d, len(w)))]
    return d.emit(kind, operands, end, **attrs, **end.attrs)


def _iconv2d(d: Draw, x: Value) -> Value:
    geometry = window(d, x)
    kernel = geometry.pop("kernel")
    channels = x.type.shape[1]
    groups = channels if d.chance(0.4) else d.pick([g for g in range(1, channels + 1) if channels % g == 0])
    per_group = d.between(1, 2) if groups == channels else max(1, d.size() // groups)
    require(per_group * groups <= 64, "too many channels")
    w = _weights(d, (per_group * groups, channels // groups, *kernel))
    return _linear(d, "iconv2d", x, d.ops[-1].array, w, groups=groups, **geometry)


def _idense(d: Draw, x: Value) -> Value:
    require(x.type.rank >= 2 and x.type.shape[-1] != BATCH, "dense needs [..., K]")
    w = _weights(d, (d.size(), x.type.shape[-1]))
    return _linear(d, "idense", x, d.ops[-1].array, w)


def _imatmul(d: Draw, x: Value) -> Value:
    require(x.type.rank >= 3, "matmul needs a batch of matrices")
    *batch, _, k = x.type.shape
    b = d.other((*batch, k, d.size()))
    end = d.ending()
    deviation = spread(x) * spread(b) * math.sqrt(k)
    return d.emit("imatmul", [x, b, d.multipliers(end, deviation, (1,)), d.offsets(end, (1,))], end, **end.attrs)


def _broadcast(d: Draw, x: Value) -> tuple[int, ...]:
    """A shape that broadcasts to that of ``x``: all of it, one entry, or one per channel."""
    if x.type.rank > 1 and d.chance(0.4):
        return tuple(x.type.shape[1:2]) + (1,) * (x.type.rank - 2)
    return (1,)


def _partner(d: Draw, x: Value) -> Value:
    """A second operand: of the same shape, per sample and channel, or a constant per channel."""
    if d.chance(0.6):
        return d.other(x.type.shape)
    if d.chance(0.5):
        return d.other((*x.type.shape[:2], *(1,) * (x.type.rank - 2)))
    quant = d.grid("u8")
    return d.const("k", d.codes("u8", _broadcast(d, x)), quant)


def _ilinear(d: Draw, x: Value) -> Value:
    end = d.ending()
    terms = [x] + [_partner(d, x) for _ in range(d.pick((0, 1, 1, 1, 2)))]
    operands = [d.offsets(end, _broadcast(d, x))]
    for term in terms:
        operands += [term, d.multipliers(end, spread(term) * len(terms), _broadcast(d, x))]
    return d.emit("ilinear", operands, end, **end.attrs)


def _imul(d: Draw, x: Value) -> Value:
    other, end = _partner(d, x), d.ending()
    m = d.multipliers(end, spread(x) * spread(other), _broadcast(d, x))
    return d.emit("imul", [x, other, m, d.offsets(end, _broadcast(d, x))], end, **end.attrs)


def _ilookup(d: Draw, x: Value) -> Value:
    require(x.type.dtype in ("u8", "i8"), "tables are for bytes")
    end = d.ending()
    rows = (x.type.shape[1],) if x.type.rank > 1 and x.type.shape[1] <= 8 and d.chance(0.3) else ()
    table = d.codes(end.dtype, (*rows, 256))
    return d.emit("ilookup", [x, d.const("table", table)], end)


def _isum_pool2d(d: Draw, x: Value) -> Value:
    geometry = window(d, x)
    count = math.prod(geometry["kernel"])
    return _summed(d, "isum_pool2d", x, spread(x) * math.sqrt(count), **geometry)


def _ireduce_sum(d: Draw, x: Value) -> Value:
    axes = some_axes(d, x)
    count = math.prod(x.type.shape[a] for a in axes)
    return _summed(d, "ireduce_sum", x, spread(x) * math.sqrt(count), axes=axes, keepdims=d.chance(0.5))


def _iresize_linear(d: Draw, x: Value) -> Value:
    require(x.type.rank == 4, "resizing needs [N, C, H, W]")
    tables: dict[str, tuple[int, ...]] = {}
    for letter, size in zip("hw", x.type.shape[2:], strict=True):
        count = d.between(1, 8)
        low = [d.below(size) for _ in range(count)]
        tables[f"{letter}0"] = tuple(low)
        tables[f"{letter}1"] = tuple(min(i + 1, size - 1) for i in low)
        tables[f"{letter}f"] = tuple(d.pick((0, 512, 1024, 2048, d.between(0, 2048))) for _ in low)
    require(x.type.shape[1] * len(tables["h0"]) * len(tables["w0"]) <= ROOM, "too large")
    return _summed(d, "iresize_linear", x, spread(x) * (1 << 22), **tables)


def _summed(d: Draw, kind: str, x: Value, deviation: float, **attrs: tuple[int, ...] | bool) -> Value:
    """``m`` and ``c`` scalar, per channel, or (windows over a border) per position."""
    end = d.ending()
    shape: tuple[int, ...] = (1,)
    if d.chance(0.3):
        result = d.shape(kind, [x], **attrs)
        shape = tuple(1 if axis == 0 or d.chance(0.3) else n for axis, n in enumerate(result))
    m, c = d.multipliers(end, deviation, shape), d.offsets(end, shape if d.chance(0.5) else (1,))
    return d.emit(kind, [x, m, c], end, **attrs, **end.attrs)


def _isoftmax(d: Draw, x: Value) -> Value:
    require(x.type.dtype in ("u8", "i8") and elements(x) > 0, "softmax is for bytes")
    if d.chance(0.7):
        table = np.rint(65535 * np.exp(-np.arange(256) * d.rng.uniform(0.005, 0.3)))
    else:
        table = d.rng.integers(0, 65536, 256)
        table[0] = max(table[0], 1)
    probabilities = TensorType((), "u8", Quant(8, False, (Dyadic(1, 8),)))
    return d.emit("isoftmax", [x, d.const("table", table.astype(np.int32))], probabilities, axis=some_axis(d, x))


ARITHMETIC: Final[Mapping[str, Maker]] = {
    "iconv2d": _iconv2d,
    "idense": _idense,
    "imatmul": _imatmul,
    "ilinear": _ilinear,
    "imul": _imul,
    "ilookup": _ilookup,
    "isum_pool2d": _isum_pool2d,
    "ireduce_sum": _ireduce_sum,
    "iresize_linear": _iresize_linear,
    "isoftmax": _isoftmax,
}
