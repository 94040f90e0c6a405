"""One TensorIR function per stage, scheduled by its folding: what SystemVerilog and HLS C++ are both written from.

A function computes one frame. Its parameters are the streams ``x0``, ``x1``, … and ``y``, arrays in the
order of transit, and constants. Serial loops are steps in time, unrolled ones are hardware side by side:

    for pixel rows, pixels, groups, blocks of pe outputs:   serial
        acc[0 … pe) = 0                                     unrolled
        for taps, blocks of simd channels:                  serial
            acc[i] += (x - zero point) * w                  unrolled pe * simd times
        for the pe / units shares:                          serial
            y = clamp((acc * m + c) >> shift)               unrolled units times
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import tvm
from numpy.typing import NDArray
from tvm import s_tir, te, tirx

from qcc.errors import TargetError
from qcc.ir.bounds import Interval
from qcc_targets.fpga.folding import Folding, check, units
from qcc_targets.fpga.stages import (
    Contraction,
    Linear,
    Lookup,
    Move,
    Pool,
    Product,
    Reduce,
    Requant,
    Stage,
    Stream,
    Windowed,
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Nest:
    """``func`` takes the streams ``x0`` …, then ``constants`` by name, in order, then ``y``; all are dense arrays."""

    stage: Stage
    folding: Folding
    func: tirx.PrimFunc
    constants: Mapping[str, Array]


def build_nest(stage: Stage, folding: Folding) -> Nest:
    """The scheduled function of ``stage``. Raises TargetError for a folding that does not divide, and for Concat."""
    check(stage, folding)
    tensors = _Tensors(stage)
    if isinstance(stage, Contraction):
        output = _contraction(stage, tensors)
    elif isinstance(stage, Pool):
        output = _pool(stage, tensors)
    elif isinstance(stage, Move):
        output = _move(stage, tensors)
    elif isinstance(stage, Reduce):
        output = _reduce(stage, tensors)
    elif isinstance(stage, (Linear, Product, Lookup)):
        output = _pointwise(stage, tensors)
    else:
        raise TargetError(f"{stage.op} %{stage.name}: it moves data only, there is nothing to schedule")
    func = te.create_prim_func([*tensors.streams, *tensors.loaded.values(), output])
    schedule = s_tir.Schedule(func)
    if isinstance(stage, Reduce):
        _schedule_reduce(schedule, folding)
    elif isinstance(stage, (Contraction, Pool)):
        _schedule_window(schedule, stage, folding)
    else:
        _split_last(schedule, schedule.get_sblock("y"), folding.pe)
    return Nest(stage, folding, _LOWER(schedule.mod)["main"], tensors.arrays)


_T: Final = s_tir.transform
_LOWER: Final = tvm.ir.transform.Sequential(
    [
        _T.LowerInitBlock(),
        _T.PlanAndUpdateBufferAllocationLocation(),
        _T.ConvertBlocksToOpaque(),
        _T.CompactBufferAllocation(),
        _T.LowerOpaqueBlock(),
        tirx.transform.StmtSimplify(),
    ]
)


def dtype_for(codes: Interval) -> str:
    """The narrowest element type of TensorIR that holds ``codes``."""
    for width in (8, 16, 32, 64):
        if codes.low >= 0 and codes.high < 1 << width and width < 64:
            return f"uint{width}"
        if codes.bits <= width:
            return f"int{width}"
    raise TargetError(f"no element type holds {codes}")


def array_range(array: Array) -> Interval:
    return Interval(int(array.min()), int(array.max()))


@dataclass(slots=True)
class _Tensors:
    """The parameters of a function under construction; constants of one value become literals."""

    stage: Stage
    streams: list[Any] = field(default_factory=list)
    loaded: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)

    def stream(self, shape: Sequence[int]) -> Any:
        """The next input, seen as an array of ``shape``."""
        slot = len(self.streams)
        codes = self.stage.inputs[slot].codes
        self.streams.append(te.placeholder(tuple(shape), dtype_for(codes), name=f"x{slot}"))
        return self.streams[-1]

    def constant(self, name: str, array: Array) -> Any:
        self.arrays[name] = array.astype(dtype_for(array_range(array)))
        self.loaded[name] = te.placeholder(array.shape, str(self.arrays[name].dtype), name=name)
        return self.loaded[name]

    def factor(self, name: str, array: Array, channels: tuple[int, ...]) -> Any:
        """A constant of the epilogue as a function of (h, w, *channel indices), int64.

        Zeros stay an array: as literals they would leave the sum unused, and with it the nest without a reduction.
        """
        if array.flat[0] and (array == array.flat[0]).all():
            return lambda *_: _int64(int(array.flat[0]))
        if array.ndim == 1:
            loaded = self.constant(name, array.reshape(channels))
            return lambda h, w, *c: loaded[c].astype("int64")
        loaded = self.constant(name, array)
        return lambda h, w, c: loaded[h, w, c].astype("int64")


def _int64(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _int32(value: int) -> Any:
    return tirx.IntImm("int32", value)


def _clamp(total: Any, q: Requant, y: Stream) -> Any:
    shifted = total >> _int64(q.shift)
    return tirx.max(tirx.min(shifted, _int64(q.high)), _int64(q.low)).astype(dtype_for(y.codes))


def _less(x: Any, zero: int) -> Any:
    return x.astype("int32") - _int32(zero) if zero else x.astype("int32")


def _tap(stage: Windowed, x: Any, h: Any, w: Any, kh: Any, kw: Any, outside: Any, read: Any) -> Any:
    """``read(row, column)`` of the input, or ``outside`` where the tap lies in the padding."""
    window, s = stage.window, stage.x
    (sh, sw), (dh, dw), (top, left, _, _) = window.strides, window.dilations, window.pads
    row, column = h * sh + kh * dh - top, w * sw + kw * dw - left
    spans = (
        (row, top > 0, (stage.output.height - 1) * sh + (window.kernel[0] - 1) * dh - top, s.height),
        (column, left > 0, (stage.output.width - 1) * sw + (window.kernel[1] - 1) * dw - left, s.width),
    )
    tests = []
    for at, before, last, extent in spans:
        tests += ([at >= 0] if before else []) + ([at < extent] if last >= extent else [])
    value = read(row, column)
    return tirx.if_then_else(tirx.all(*tests), value, outside) if tests else value


def _contraction(stage: Contraction, tensors: _Tensors) -> Any:
    q, y = stage.requant, stage.output
    groups, outputs, kh, kw, depth = stage.weights.shape
    x = tensors.stream(stage.x.shape)
    over = (groups,) if stage.channelwise else (groups, outputs)
    r = tensors.stream((y.height, y.width, *over)) if q.mr is not None else None
    weights = tensors.constant("w", stage.weights[:, 0, :, :, 0] if stage.channelwise else stage.weights)
    m, c = tensors.factor("m", q.m, over), tensors.factor("c", q.c, over)
    mr = None if q.mr is None else tensors.factor("mr", q.mr, over)
    i, j = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    k = te.reduce_axis((0, depth), "k")

    def product(*at: Any) -> Any:
        h, w, g, *n = at

        def read(row: Any, column: Any) -> Any:
            return _less(x[row, column, g * depth + k if n else g], stage.zero_point)

        code = _tap(stage, x, h, w, i, j, _int32(0), read)
        weight = weights[g, n[0], i, j, k] if n else weights[g, i, j]
        return te.sum(code * weight.astype("int32"), axis=[i, j, k] if n else [i, j])

    acc = te.compute((y.height, y.width, *over), product, name="acc")

    def finish(*at: Any) -> Any:
        total = acc[at].astype("int64") * m(*at) + c(*at)
        if r is not None and mr is not None:
            total = total + r[at].astype("int64") * mr(*at)
        return _clamp(total, q, y)

    return te.compute((y.height, y.width, *over), finish, name="y")


def _pool(stage: Pool, tensors: _Tensors) -> Any:
    y, q = stage.output, stage.requant
    x = tensors.stream(stage.x.shape)
    i, j = (te.reduce_axis((0, k), name) for k, name in zip(stage.window.kernel, ("kh", "kw"), strict=True))
    if q is None:
        lowest = stage.output.codes.low

        def best(h: Any, w: Any, c: Any) -> Any:
            read = lambda row, column: x[row, column, c].astype("int32")  # noqa: E731
            return te.max(_tap(stage, x, h, w, i, j, _int32(lowest), read), axis=[i, j])

        acc = te.compute(y.shape, best, name="acc")
        return te.compute(y.shape, lambda *at: acc[at].astype(dtype_for(y.codes)), name="y")

    def total(h: Any, w: Any, c: Any) -> Any:
        read = lambda row, column: _less(x[row, column, c], stage.zero_point)  # noqa: E731
        return te.sum(_tap(stage, x, h, w, i, j, _int32(0), read), axis=[i, j])

    acc = te.compute(y.shape, total, name="acc")
    return _requantized(acc, q, y, tensors)


def _requantized(acc: Any, q: Requant, y: Stream, tensors: _Tensors) -> Any:
    m, c = (tensors.factor(name, a, (y.channels,)) for name, a in (("m", q.m), ("c", q.c)))
    return te.compute(y.shape, lambda *at: _clamp(acc[at].astype("int64") * m(*at) + c(*at), q, y), name="y")


def _reduce(stage: Reduce, tensors: _Tensors) -> Any:
    x, y = tensors.stream(stage.inputs[0].shape), stage.output
    h, w = (te.reduce_axis((0, n), name) for n, name in zip(stage.inputs[0].shape, ("h", "w"), strict=False))
    if stage.requant is None:
        acc = te.compute(y.shape, lambda _, __, c: te.max(x[h, w, c].astype("int32"), axis=[h, w]), name="acc")
        return te.compute(y.shape, lambda *at: acc[at].astype(dtype_for(y.codes)), name="y")
    acc = te.compute(y.shape, lambda _, __, c: te.sum(_less(x[h, w, c], stage.zero_point), axis=[h, w]), name="acc")
    return _requantized(acc, stage.requant, y, tensors)


def _move(stage: Move, tensors: _Tensors) -> Any:
    y, kind = stage.output, dtype_for(stage.output.codes)
    x = tensors.stream(stage.x.shape)
    same = bool((stage.fill == stage.fill.flat[0]).all())
    fill = None if same else tensors.constant("fill", stage.fill)

    def moved(h: Any, w: Any, c: Any) -> Any:
        outside = tirx.IntImm(kind, int(stage.fill.flat[0])) if fill is None else fill[c].astype(kind)
        read = lambda row, column: x[row, column, c - stage.first].astype(kind)  # noqa: E731
        inside = _tap(stage, x, h, w, 0, 0, outside, read)
        tests = ([c >= stage.first] if stage.first > 0 else []) + (
            [c < stage.first + stage.x.channels] if y.channels > stage.first + stage.x.channels else []
        )
        return tirx.if_then_else(tirx.all(*tests), inside, outside) if tests else inside

    return te.compute(y.shape, moved, name="y")


def _pointwise(stage: Linear | Product | Lookup, tensors: _Tensors) -> Any:
    y = stage.output
    xs = [tensors.stream(y.shape) for _ in stage.inputs]
    if isinstance(stage, Lookup):
        rows = len(stage.table)
        table = tensors.constant("table", stage.table)

        def entry(h: Any, w: Any, c: Any) -> Any:
            code = xs[0][h, w, c].astype("int32") - _int32(stage.first)
            return table[c if rows > 1 else 0, code].astype(dtype_for(y.codes))

        return te.compute(y.shape, entry, name="y")
    q = stage.requant
    over = (y.channels,)
    c = tensors.factor("c", q.c, over)
    if isinstance(stage, Product):
        m = tensors.factor("m", q.m, over)
        za, zb = stage.zero_points

        def multiplied(*at: Any) -> Any:
            return _clamp((_less(xs[0][at], za) * _less(xs[1][at], zb)).astype("int64") * m(*at) + c(*at), q, y)

        return te.compute(y.shape, multiplied, name="y")
    ms = [tensors.factor(f"m{i}", a, over) for i, a in enumerate(stage.multipliers)]

    def added(*at: Any) -> Any:
        total = c(*at)
        for x, m in zip(xs, ms, strict=True):
            total = total + x[at].astype("int64") * m(*at)
        return _clamp(total, q, y)

    return te.compute(y.shape, added, name="y")


def _split_last(schedule: Any, block: Any, lanes: int) -> list[Any]:
    """The innermost loop in ``lanes`` side by side; the loops that are left."""
    *outer, last = schedule.get_loops(block)
    steps, side = schedule.split(last, [None, lanes])
    schedule.unroll(side)
    return [*outer, steps]


def _schedule_window(schedule: Any, stage: Contraction | Pool, folding: Folding) -> None:
    block, finish = schedule.get_sblock("acc"), schedule.get_sblock("y")
    *_, last = schedule.get_loops(finish)
    blocks, _, side = schedule.split(last, [None, folding.pe // units(stage, folding), units(stage, folding)])
    schedule.unroll(side)
    outer = len(schedule.get_loops(finish)) - 2
    schedule.compute_at(block, blocks, preserve_unit_loops=True)
    *_, outputs = schedule.get_loops(block)[outer : -_taps(stage)]
    taps = schedule.get_loops(block)[-_taps(stage) :]
    lanes = []
    if _taps(stage) == 3:
        *taps, channels = taps
        steps, lane = schedule.split(channels, [None, folding.simd])
        taps, lanes = [*taps, steps], [lane]
    schedule.reorder(*taps, outputs, *lanes)
    for loop in (outputs, *lanes):
        schedule.unroll(loop)
    start = schedule.decompose_reduction(block, taps[0])
    schedule.unroll(schedule.get_loops(start)[-1])


def _taps(stage: Contraction | Pool) -> int:
    """Reduction loops: kernel rows and columns, and channels where these mix."""
    return 3 if isinstance(stage, Contraction) and not stage.channelwise else 2


def _schedule_reduce(schedule: Any, folding: Folding) -> None:
    block = schedule.get_sblock("acc")
    *outer, rows, columns = schedule.get_loops(block)
    schedule.reorder(rows, columns, *outer)
    _split_last(schedule, block, folding.pe)
    start = schedule.decompose_reduction(block, rows)
    _split_last(schedule, start, folding.pe)
    _split_last(schedule, schedule.get_sblock("y"), folding.pe)
