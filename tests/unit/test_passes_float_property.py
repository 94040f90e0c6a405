"""Whatever graph hypothesis can think of, the float passes preserve its function."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.text import render
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.pipeline import Pipeline
from qcc.verify.interp import evaluate
from qcc_passes.canonicalize import Canonicalize
from qcc_passes.fold_batch_norm import FoldBatchNorm

Draw = Callable[..., int]
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
POINTWISE = ("sigmoid(x)", "tanh(x)", "max(x, 0.0)", "min(max(x, -1.0), 2.0)", "add(mul(x, 0.5), 1.0)", "neg(x)")


class Sketch:
    """A graph in the making: every step appends operations and may read any value made before."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.b = GraphBuilder("random")
        shape = (BATCH, *(draw(st.sampled_from([3, 4, 5])) for _ in range(3)))
        self.values = [self.b.input("x", shape)]

    def pick(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def flag(self) -> bool:
        return bool(self.pick(0, 1))

    def constant(self, *shape: int, low: float = -1.0) -> Value:
        array = self._rng.uniform(low, 1.0, shape).astype(np.float32)
        return self.b.constant(array, "c")

    def any(self, rank: int | None = None) -> Value | None:
        """A value made before, recent ones more often; None when there is none of that rank."""
        fitting = [v for v in self.values if rank is None or v.type.rank == rank]
        return fitting[-1 - min(self.pick(0, 5), self.pick(0, 5), len(fitting) - 1)] if fitting else None

    def put(self, kind: str, *operands: Value, **attrs: object) -> Value:
        value = self.b.op(kind, operands, **attrs)  # type: ignore[arg-type]
        self.values.append(value)
        return value


def _transpose(s: Sketch, x: Value) -> None:
    axes = list(range(1, x.type.rank))
    order = [axes.pop(s.pick(0, len(axes) - 1)) for _ in range(len(axes))]
    s.put("transpose", x, perm=(0, *order))


def _reshape(s: Sketch, x: Value) -> None:
    dims = x.type.shape[1:]
    at = s.pick(0, len(dims))
    shapes = [(*dims[:at], 1, *dims[at:]), (int(np.prod(dims)),), tuple(d for d in dims if d != 1), dims]
    s.put("reshape", x, shape=(BATCH, *shapes[s.pick(0, 3)]))


def _conv(s: Sketch, x: Value) -> None:
    if x.type.rank != 4:
        return
    nhwc = s.flag()
    if nhwc:
        x = s.put("transpose", x, perm=NCHW)
    channels = x.type.shape[1]
    groups = channels if s.flag() else 1
    pads = tuple(s.pick(0, 1) for _ in range(4))
    w = s.constant(channels, channels // groups, *(min(s.pick(1, 3), d) for d in x.type.shape[2:]))
    b = s.constant(channels)
    if x.type.shape[2] > 1 and s.pick(0, 4) == 0:
        w = s.constant(channels, channels // groups, 2, 2)
        attrs = {"strides": (2, 1), "dilations": (1, 2), "output_padding": (s.pick(0, 1), 0)}
        x = s.put("conv_transpose2d", x, w, b, groups=groups, pads=pads, **attrs)
    else:
        x = s.put("conv2d", x, w, b, strides=(1, s.pick(1, 2)), dilations=(1, 1), groups=groups, pads=pads)
    if s.flag():
        scale, offset, mean = (s.constant(channels) for _ in range(3))
        x = s.put("batch_norm", x, scale, offset, mean, s.constant(channels, low=0.5), epsilon=1e-3)
    if nhwc:
        x = s.put("transpose", x, perm=NHWC)
    if s.flag():
        s.put("clip", x, lo=0.0)


def _pointwise(s: Sketch, x: Value) -> None:
    s.put("map", x, fn=POINTWISE[s.pick(0, len(POINTWISE) - 1)])


def _clip(s: Sketch, x: Value) -> None:
    s.put("clip", x, **[{"lo": 0.0}, {"lo": 0.0, "hi": 1.0}, {"hi": 0.5}, {"lo": -1.0}][s.pick(0, 3)])


def _constant_operand(s: Sketch, x: Value) -> None:
    rank = x.type.rank
    axis = s.pick(1, max(rank - 1, 1)) if rank > 1 else 0
    shapes = [(), (1,), tuple(x.type.shape[a] if a == axis else 1 for a in range(rank)), (1, *x.type.shape[1:])]
    kind = ("add", "sub", "mul", "div")[s.pick(0, 3)]
    c = s.constant(*shapes[s.pick(0, 3)], low=0.5)
    s.put(kind, *((c, x) if s.flag() and kind != "div" else (x, c)))


def _binary(s: Sketch, x: Value) -> None:
    same = [v for v in s.values if v.type == x.type]
    s.put(("add", "sub", "mul")[s.pick(0, 2)], x, same[s.pick(0, len(same) - 1)])


def _silu(s: Sketch, x: Value) -> None:
    s.put("mul", x, s.put("map", x, fn="sigmoid(x)"))


def _residual(s: Sketch, x: Value) -> None:
    if x.type.rank != 4:
        return
    y = s.put("transpose", x, perm=NCHW)
    c = y.type.shape[1]
    window = {"strides": (1, 1), "dilations": (1, 1), "groups": 1, "pads": (1, 1, 1, 1)}
    y = s.put("conv2d", y, s.constant(c, c, 3, 3), s.constant(c), **window)
    s.put("clip", s.put("add", x, s.put("transpose", y, perm=NHWC)), lo=0.0)


def _window(s: Sketch, x: Value) -> None:
    if x.type.rank != 4:
        return
    if s.flag():
        x = s.put("pad", x, pads=(0, 0, 1, 0, 0, 0, 0, 1), values=(0.0,))
    kernel = tuple(min(2, d) for d in x.type.shape[2:]) if s.flag() else x.type.shape[2:]
    attrs = {"kernel": kernel, "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    if s.flag():
        s.put("max_pool2d", x, **attrs)
    else:
        s.put("avg_pool2d", x, **attrs, ceil_pads=(0, 0), count_include_pad=s.flag())


def _movement(s: Sketch, x: Value) -> None:
    axis = s.pick(1, x.type.rank - 1)
    size = x.type.shape[axis]
    match s.pick(0, 4):
        case 0:
            s.put("slice", x, axis=axis, start=s.pick(0, size - 1), stop=size, step=s.pick(1, 2))
        case 1:
            s.put("gather", x, axis=axis, indices=tuple(s.pick(0, size - 1) for _ in range(s.pick(1, 3))))
        case 2:
            same = [v for v in s.values if v.type == x.type]
            s.put("concat", x, *(same[s.pick(0, len(same) - 1)] for _ in range(s.pick(0, 2))), axis=axis)
        case 3:
            pads = [0] * (2 * x.type.rank)
            pads[axis], pads[axis + x.type.rank] = s.pick(0, 1), s.pick(0, 1)
            values = (0.0,) if s.flag() else tuple(0.25 * i for i in range(x.type.shape[1]))
            s.put("pad", x, pads=tuple(pads), values=values)
        case _:
            s.put("softmax", x, axis=axis)


def _reduce(s: Sketch, x: Value) -> None:
    axes = tuple(a for a in range(1, x.type.rank) if s.flag())
    kind = ("reduce_mean", "reduce_sum", "reduce_max")[s.pick(0, 2)]
    s.put(kind, x, axes=axes or (x.type.rank - 1,), keepdims=s.flag())


def _dense(s: Sketch, x: Value) -> None:
    if x.type.rank < 2:
        return
    if s.flag():
        x = s.put("reshape", x, shape=(BATCH, int(np.prod(x.type.shape[1:]))))
    k = x.type.shape[-1]
    if s.flag():
        s.put("add", s.put("matmul", x, s.constant(k, 3)), s.constant(3))
    else:
        s.put("dense", x, s.constant(3, k), s.constant(3))


STEPS = (
    _transpose, _reshape, _conv, _conv, _pointwise, _clip, _constant_operand, _constant_operand, _binary, _silu,
    _residual, _window, _movement, _movement, _reduce, _dense,
)  # fmt: skip


@st.composite
def graphs(draw: Draw) -> Graph:
    """Graphs of up to a dozen steps, mostly on [N, a, b, c], with one to three outputs."""
    s = Sketch(draw)
    for _ in range(s.pick(1, 12)):
        x = s.any(4 if s.flag() else None)
        if x is not None and x.type.rank >= 2 and np.prod(x.type.shape[1:]) < 2000:
            STEPS[s.pick(0, len(STEPS) - 1)](s, x)
    outputs = {v.name: v for v in (s.values[-1], *(s.any() for _ in range(s.pick(0, 2)))) if v is not None}
    return s.b.graph(list(outputs.values()), prune=True)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 2**32 - 1))
def test_float_passes_preserve_the_function(graph: Graph, seed: int) -> None:
    note(render(graph))
    passes = (FoldBatchNorm(), Canonicalize())
    after = Pipeline(passes).run(graph, PassContext())
    assert [v.name for v in after.outputs] == [v.name for v in graph.outputs]
    assert [v.type for v in after.outputs] == [v.type for v in graph.outputs]
    (x,) = graph.inputs
    data = {"x": np.random.default_rng(seed).normal(size=(2, *x.type.shape[1:])).astype(np.float32)}
    names = [o.result.name for o in graph.ops]
    wanted = evaluate(graph, data, keep=names)
    got = evaluate(after, data)
    scale = max([1.0, *(float(np.abs(wanted[n]).max()) for n in names)])
    for v in graph.outputs:
        assert np.abs(got[v.name] - wanted[v.name]).max() <= 1e-5 * scale, v.name
    again = Pipeline(passes).run(after, PassContext())
    assert again.ops == after.ops, "canonical form is a fixed point"
