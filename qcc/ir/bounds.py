"""Overflow certificates: exact bounds on every accumulator of an INTEGER graph, from its real weights.

Codes are bounded by interval arithmetic: an element type's range for graph inputs, the clamp
``[qmin, qmax]`` or the table of the operation that made them. An accumulator over weights ``w`` and
codes less their zero point in [a, b] then lies, per output channel, in

    [P*a + M*b, P*b + M*a],    P = sum of the positive weights, M = sum of the negative ones.

Padding contributes zero. Where a <= 0 <= b every partial sum, in any order, lies in there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.graph import Graph, Op, Value, constants
from qcc.ir.types import TensorType

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Interval:
    """The integers from ``low`` to ``high``, both included."""

    low: int
    high: int

    @property
    def magnitude(self) -> int:
        return max(abs(self.low), abs(self.high))

    @property
    def bits(self) -> int:
        """Width of the narrowest two's complement integer that holds all of them."""
        return max(self.high.bit_length(), (~self.low).bit_length() if self.low < 0 else 0) + 1

    def __add__(self, other: Interval | int) -> Interval:
        other = other if isinstance(other, Interval) else Interval(other, other)
        return Interval(self.low + other.low, self.high + other.high)

    def __sub__(self, offset: int) -> Interval:
        return Interval(self.low - offset, self.high - offset)

    def __mul__(self, other: Interval | int) -> Interval:
        other = other if isinstance(other, Interval) else Interval(other, other)
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Interval(min(corners), max(corners))

    def with_zero(self) -> Interval:
        return Interval(min(self.low, 0), max(self.high, 0))

    def __str__(self) -> str:
        return f"[{self.low}, {self.high}]"


def hull(intervals: Iterable[Interval]) -> Interval:
    """The smallest interval that holds all of ``intervals``; there must be one."""
    several = list(intervals)
    return Interval(min(i.low for i in several), max(i.high for i in several))


@dataclass(frozen=True, slots=True)
class Certificate:
    """What one operation's arithmetic can reach, over all inputs.

    ``accumulator`` bounds acc (for ``ilinear``, which has none, its codes; for ``isoftmax`` the sum
    of exponentials); ``raw`` bounds the same sum over codes from which no zero point is subtracted,
    for targets that fold zero points into ``c``; ``total`` bounds acc*m + r*mr + c, and ``reach`` the
    sum of its terms' magnitudes, which no order of addition exceeds.
    """

    op: str
    result: str
    accumulator: Interval
    raw: Interval
    total: Interval
    reach: int

    def check(self) -> None:
        """Raise VerifyError unless the accumulator fits int32 and the epilogue int64."""
        if self.accumulator.bits > 32:
            raise VerifyError(
                f"{self.op} %{self.result}: its accumulator may reach {self.accumulator}, which needs "
                f"{self.accumulator.bits} bits; narrow the weights or the activation, or split the sum"
            )
        if self.reach >= 1 << 63:
            raise VerifyError(f"{self.op} %{self.result}: acc*m + c may reach {self.reach}, beyond int64")

    def row(self) -> tuple[str, str, str, str]:
        """Cells of a report: value, operation, accumulator bits, epilogue bits."""
        return self.result, self.op, str(self.accumulator.bits), str(self.total.bits)

    def describe(self) -> dict[str, Any]:
        """This certificate as plain data, for a JSON report."""
        spans = {"accumulator": self.accumulator, "raw": self.raw, "total": self.total}
        bounds = {name: {"low": i.low, "high": i.high, "bits": i.bits} for name, i in spans.items()}
        return {"op": self.op, **bounds, "reach": self.reach}

    def __str__(self) -> str:
        bits = f"{self.accumulator.bits}-bit accumulator {self.accumulator}"
        return f"{self.op} %{self.result}: {bits}, {self.total.bits}-bit epilogue"


def certificates(graph: Graph) -> Mapping[str, Certificate]:
    """A certificate per arithmetic operation, by the name of its result (an analysis).

    Raises VerifyError where an accumulator may leave int32 or an epilogue int64, or where a
    multiplier, weight or table is not a constant.
    """
    arrays = constants(graph)
    ranges = code_ranges(graph)
    found = {o.result.name: certify(o, ranges, arrays) for o in graph.ops if o.kind in _RULES}
    for certificate in found.values():
        certificate.check()
    return found


def certify(o: Op, ranges: Mapping[str, Interval], arrays: Mapping[str, Array]) -> Certificate:
    """The certificate of ``o``, given the codes of every value and the arrays of constants; unchecked.

    Raises VerifyError when ``o`` does no arithmetic, or a multiplier, weight or table is no constant.
    """
    if o.kind not in _RULES:
        raise VerifyError(f"{o}: has no accumulator")
    return _RULES[o.kind](_Site(o, ranges, arrays))


def code_ranges(graph: Graph) -> dict[str, Interval]:
    """The codes that each value of an INTEGER graph can take, by value name (an analysis)."""
    ranges = {v.name: _element_range(v.type) for v in graph.inputs}
    arrays = constants(graph)
    for o in graph.ops:
        ranges[o.result.name] = _result_range(o, ranges, arrays)
    return ranges


def _element_range(type_: TensorType) -> Interval:
    info = np.iinfo(type_.numpy)
    return Interval(int(info.min), int(info.max))


def _array_range(array: Array) -> Interval:
    return Interval(int(array.min()), int(array.max()))


def _result_range(o: Op, ranges: Mapping[str, Interval], arrays: Mapping[str, Array]) -> Interval:
    if o.kind == "constant":
        return _array_range(o.array) if o.array.size else Interval(0, 0)
    if "qmin" in o.attrs:
        return Interval(o.int_attr("qmin"), o.int_attr("qmax"))
    if o.kind == "ilookup" and o.operands[1].name in arrays:
        return _array_range(arrays[o.operands[1].name])
    if o.kind == "isoftmax":
        return Interval(0, 255)
    if o.kind == "argmax":
        return Interval(0, max(o.operands[0].type.shape[o.int_attr("axis")] - 1, 0))
    if o.kind in ("ilookup", "max_pool2d"):  # a window may lie in the padding: then it gives the lowest code
        return _element_range(o.result.type)
    moved = [ranges[v.name] for v in o.operands]
    if o.kind == "pad":
        moved += [Interval(int(v), int(v)) for v in o.floats_attr("values")]
    if o.kind == "dilate2d":
        zero = _zero_point(o.operands[0])
        moved.append(Interval(zero, zero))
    return hull(moved)


def _zero_point(value: Value) -> int:
    return value.type.quant.zero_point if value.type.quant is not None else 0


@dataclass(frozen=True, slots=True)
class _Site:
    """An operation among the code ranges and constants of its graph."""

    op: Op
    ranges: Mapping[str, Interval]
    arrays: Mapping[str, Array]

    def raw(self, slot: int) -> Interval:
        return self.ranges[self.op.operands[slot].name]

    def codes(self, slot: int) -> Interval:
        """Codes less their zero point."""
        return self.raw(slot) - _zero_point(self.op.operands[slot])

    def const(self, slot: int) -> Array:
        name = self.op.operands[slot].name
        if name not in self.arrays:
            raise VerifyError(f"{self.op}: %{name} must be a constant")
        return self.arrays[name]

    def size(self, axes: Iterable[int]) -> int:
        """Elements of the first operand along ``axes``."""
        return math.prod(self.op.operands[0].type.shape[a] for a in axes)

    def single(self, acc: Interval, raw: Interval, m: int, c: int) -> Certificate:
        """One accumulator range for the whole tensor; ``m`` and ``c`` are operand slots."""
        pairs = _rows(self.const(m), self.const(c))
        return self.certificate(acc, raw, [([acc * a], b) for a, b in pairs])

    def certificate(self, acc: Interval, raw: Interval, sums: Iterable[tuple[Sequence[Interval], int]]) -> Certificate:
        """``sums``: for each distinct epilogue, the intervals of its terms, and its constant."""
        known = list(sums)
        total = hull(sum(terms, Interval(c, c)) for terms, c in known)
        reach = max(sum(t.magnitude for t in terms) + abs(c) for terms, c in known)
        return Certificate(self.op.kind, self.op.result.name, acc, raw, total, reach)


def _rows(*arrays: Array) -> list[tuple[int, ...]]:
    """The distinct tuples of elements that the broadcast arrays put side by side."""
    stacked = np.stack([a.astype(np.int64).reshape(-1) for a in np.broadcast_arrays(*arrays)])
    return [tuple(map(int, column)) for column in np.unique(stacked, axis=1).T]


def _weighted(positive: int, negative: int, codes: Interval) -> Interval:
    return codes * positive + codes * negative


def _linear(site: _Site) -> Certificate:
    """``iconv2d`` and ``idense``: one accumulator range per output channel."""
    o = site.op
    w = site.const(1).astype(np.int64) - _zero_point(o.operands[1])
    rows = w.reshape(len(w), -1)
    codes, raw = site.codes(0), site.raw(0)
    if o.kind == "iconv2d" and any(o.ints_attr("pads")):
        codes, raw = codes.with_zero(), raw.with_zero()
    positive = [int(p) for p in np.maximum(rows, 0).sum(axis=1)]
    negative = [int(n) for n in np.minimum(rows, 0).sum(axis=1)]
    per_channel = list(zip(positive, negative, strict=True))
    slots = (2, 3, 5) if len(o.operands) == 6 else (2, 3)
    epilogues = [np.broadcast_to(site.const(s).reshape(-1), len(w)).tolist() for s in slots]
    sums = []
    for (p, n), m, c, *mr in zip(per_channel, *epilogues, strict=True):
        sums.append(([_weighted(p, n, codes) * m, *(site.raw(4) * k for k in mr)], c))
    acc = hull(_weighted(p, n, codes) for p, n in per_channel)
    return site.certificate(acc, hull(_weighted(p, n, raw) for p, n in per_channel), sums)


def _imatmul(site: _Site) -> Certificate:
    depth = site.op.operands[0].type.shape[-1]
    return site.single(site.codes(0) * site.codes(1) * depth, site.raw(0) * site.raw(1) * depth, 2, 3)


def _imul(site: _Site) -> Certificate:
    return site.single(site.codes(0) * site.codes(1), site.raw(0) * site.raw(1), 2, 3)


def _ilinear(site: _Site) -> Certificate:
    slots = range(1, len(site.op.operands), 2)
    terms = [site.raw(s) for s in slots]
    sums = []
    for c, *ms in _rows(site.const(0), *(site.const(s + 1) for s in slots)):
        sums.append(([x * m for x, m in zip(terms, ms, strict=True)], c))
    return site.certificate(hull(terms), hull(terms), sums)


def _isum_pool2d(site: _Site) -> Certificate:
    count = math.prod(site.op.ints_attr("kernel"))
    codes, raw = site.codes(0), site.raw(0)
    if any(site.op.ints_attr("pads")):
        codes, raw = codes.with_zero(), raw.with_zero()
    return site.single(codes * count, raw * count, 1, 2)


def _ireduce_sum(site: _Site) -> Certificate:
    count = site.size(site.op.ints_attr("axes"))
    return site.single(site.codes(0) * count, site.raw(0) * count, 1, 2)


_RESIZE_ONE: Final = 1 << 11


def _iresize_linear(site: _Site) -> Certificate:
    """Fractions in [0, 2**11] blend, so the accumulator stays within 2**22 times the codes."""
    for name in ("hf", "wf"):
        fractions = site.op.ints_attr(name)
        if min(fractions) < 0 or max(fractions) > _RESIZE_ONE:
            raise VerifyError(f"{site.op}: '{name}' must lie in [0, {_RESIZE_ONE}]")
    whole = _RESIZE_ONE * _RESIZE_ONE
    return site.single(site.codes(0) * whole, site.raw(0) * whole, 1, 2)


def _isoftmax(site: _Site) -> Certificate:
    """As e <= sum e, e * (2**40 // sum e) never exceeds 2**40."""
    table = site.const(1)
    if table.shape != (256,) or int(table.min()) < 0 or int(table.max()) > 65535 or int(table[0]) == 0:
        raise VerifyError(f"{site.op}: its table must be 256 entries in [0, 65535], the first above 0")
    depth = site.op.operands[0].type.shape[site.op.int_attr("axis")]
    sums = Interval(int(table[0]), int(table.max()) * depth)
    return site.certificate(sums, sums, [([Interval(0, 1 << 40)], 1 << 31)])


_RULES: Final[Mapping[str, Callable[[_Site], Certificate]]] = {
    "iconv2d": _linear,
    "idense": _linear,
    "imatmul": _imatmul,
    "imul": _imul,
    "ilinear": _ilinear,
    "isum_pool2d": _isum_pool2d,
    "ireduce_sum": _ireduce_sum,
    "iresize_linear": _iresize_linear,
    "isoftmax": _isoftmax,
}
