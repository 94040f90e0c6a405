"""Random networks with residuals, concatenations, depthwise and grouped convolutions, and orders of their channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.layout import Widths
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.target import NARROW_BITS, Capabilities
from qcc_passes.calibrate import Calibrate
from qcc_passes.channel_groups import ChannelGroups, channel_groups
from qcc_passes.channel_orders import reordered
from qcc_passes.dyadic import Dyadic
from qcc_passes.facts import BitPlan
from qcc_passes.layers import layers
from qcc_passes.quantize import Quantize

Draw = Callable[..., Any]
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Sketch:
    """A network in the making, on 4 rows and columns: every step may read any value made before."""

    def __init__(self, draw: Draw, *, tables: bool) -> None:
        self._draw = draw
        self.tables = tables
        self._rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.b = GraphBuilder("random")
        self.values = [self.b.input("x", (BATCH, 3, 4, 4))]
        self.conv(self.values[0], 4)

    def pick(self, low: int, high: int) -> int:
        number: int = self._draw(st.integers(low, high))
        return number

    def map(self) -> Value:
        """A feature map made before, a recent one more often."""
        return self.values[-1 - min(self.pick(0, 4), self.pick(0, 4), len(self.values) - 1)]

    def like(self, x: Value) -> Value:
        """A map of the same shape."""
        same = [v for v in self.values if v.type == x.type]
        return same[self.pick(0, len(same) - 1)]

    def constant(self, *shape: int) -> Value:
        return self.b.constant(self._rng.normal(size=shape).astype(np.float32), "c")

    def put(self, kind: str, *operands: Value, **attrs: Any) -> Value:
        value = self.b.op(kind, operands, **attrs)
        if value.type.rank == 4 and value.type.shape[2:] == (4, 4):
            self.values.append(value)
        return value

    def conv(self, x: Value, count: int, groups: int = 1, residual: bool = False) -> Value:
        size = self.pick(0, 1)
        w = self.constant(count, x.type.shape[1] // groups, 2 * size + 1, 2 * size + 1)
        same = [v for v in self.values if v.type.shape == (BATCH, count, 4, 4)]
        rest = same[-1:] if residual else []
        attrs: dict[str, Any] = {"strides": (1, 1), "pads": (size,) * 4, "dilations": (1, 1), "groups": groups}
        if self.pick(0, 1):
            attrs["lo"] = 0.0
        return self.put("conv2d", x, w, self.constant(count), *rest, **attrs)


def _conv(s: Sketch) -> None:
    s.conv(s.map(), s.pick(1, 3) * 2, residual=bool(s.pick(0, 1)))


def _grouped(s: Sketch) -> None:
    x = s.map()
    if x.type.shape[1] % 2 == 0:
        s.conv(x, 2 * s.pick(1, 3), groups=2)


def _depthwise(s: Sketch) -> None:
    x = s.map()
    count = x.type.shape[1]
    s.conv(x, count * s.pick(1, 2), groups=count)


def _add(s: Sketch) -> None:
    x = s.map()
    s.put(("add", "sub", "mul")[s.pick(0, 2)], x, s.like(x))


def _concat(s: Sketch) -> None:
    s.put("concat", *(s.map() for _ in range(s.pick(2, 3))), axis=1)


def _slice(s: Sketch) -> None:
    x = s.map()
    count = x.type.shape[1]
    s.put("slice", x, axis=1, start=s.pick(0, count - 1), stop=count, step=s.pick(1, 2))


def _split(s: Sketch) -> None:
    """Both halves of the channels, added: each unit sits twice in the whole."""
    x = s.map()
    half = x.type.shape[1] // 2
    if half:
        parts = [s.put("slice", x, axis=1, start=i * half, stop=(i + 1) * half, step=1) for i in (0, 1)]
        s.put("add", *parts)


def _pad(s: Sketch) -> None:
    s.put("pad", s.map(), pads=(0, s.pick(0, 2), 0, 0, 0, s.pick(0, 2), 0, 0), values=(0.0,))


def _gather(s: Sketch) -> None:
    x = s.map()
    count = x.type.shape[1]
    s.put("gather", x, axis=1, indices=tuple(s.pick(0, count - 1) for _ in range(s.pick(1, 4))))


def _shuffle(s: Sketch) -> None:
    """ShuffleNet's exchange of channels between two groups."""
    x = s.map()
    half = x.type.shape[1] // 2
    if x.type.shape[1] == 2 * half:
        y = s.put("reshape", x, shape=(BATCH, 2, half, 4, 4))
        if not s.tables:
            y = s.put("mul", y, s.constant(*((1, half), (2, half))[s.pick(0, 1)], 1, 1))
        s.put("reshape", s.put("transpose", y, perm=(0, 2, 1, 3, 4)), shape=x.type.shape)


def _excite(s: Sketch) -> None:
    """A factor per channel, computed from the channels' means."""
    x = s.map()
    count = x.type.shape[1]
    mean = s.put("reduce_mean", x, axes=(2, 3), keepdims=False)
    gate = s.put("dense", mean, s.constant(count, count), s.constant(count))
    s.put("mul", x, s.put("reshape", s.put("map", gate, fn="sigmoid(x)"), shape=(BATCH, count, 1, 1)))


def _parameters(s: Sketch) -> None:
    x = s.map()
    count = x.type.shape[1]
    shapes = [(count, 1, 1), (1, count, 1, 1), (1, 1, 1), (count, 4, 4)]
    p = [s.constant(*shapes[s.pick(0, 2 if s.tables else 3)]) for _ in range(2)]
    s.put("map", x, *p, fn="add(mul(max(x, 0.0), p0), p1)")


def _across(s: Sketch) -> None:
    """A spatial map for all channels: their mean, from an operation that sees them all."""
    x = s.map()
    s.put("mul", x, s.put("reduce_mean", x, axes=(1,), keepdims=True))


def _last(s: Sketch) -> None:
    """Dense over the channels, in the layout that has them last."""
    x = s.put("transpose", s.map(), perm=NHWC)
    if s.pick(0, 1) and not s.tables:
        x = s.put("map", x, s.constant(x.type.shape[3]), fn="mul(x, p0)")
    y = s.put("dense", x, s.constant(4, x.type.shape[3]), s.constant(4))
    s.put("transpose", y, perm=NCHW)


def _pool(s: Sketch) -> None:
    window = {"kernel": (3, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    s.put("max_pool2d", s.map(), **window)


STEPS = (
    _conv, _conv, _conv, _grouped, _depthwise, _add, _add, _concat, _slice, _split, _pad, _gather, _shuffle, _excite,
    _parameters, _across, _last, _pool,
)  # fmt: skip


def _head(s: Sketch, x: Value) -> Value:
    """What makes an output of a map: averages and a dense layer, a flattened one, channels last, or nothing."""
    way = s.pick(0, 6)
    count = x.type.shape[1]
    if way == 6:
        return x
    if way < 2:
        flat = s.put("reduce_mean", x, axes=(2, 3), keepdims=False)
    else:
        turned = x if way < 4 else s.put("transpose", x, perm=NHWC)
        flat = s.put("reshape", turned, shape=(BATCH, 16 * count))
    return s.put("dense", flat, s.constant(3, flat.type.shape[1]), s.constant(3))


@st.composite
def networks(draw: Draw, *, tables: bool = False) -> Graph:
    """Networks of up to ten steps, with one or two outputs; with ``tables``, maps have a table per channel."""
    s = Sketch(draw, tables=tables)
    for _ in range(s.pick(2, 10)):
        if s.map().type.shape[1] <= 24:
            STEPS[s.pick(0, len(STEPS) - 1)](s)
    outputs = [_head(s, s.values[-1])]
    if s.pick(0, 4) == 0 and (other := s.map()) not in outputs:
        outputs.append(other)
    return s.b.graph(outputs, prune=True)


def shuffled(groups: ChannelGroups, seed: int) -> dict[int, int]:
    """A random order for every free class."""
    rng = np.random.default_rng(seed)
    seats = [(c.channels, rng.permutation(c.channels).tolist()) for c in groups.free]
    return {seat: int(taken) for before, after in seats for seat, taken in zip(before, after, strict=True)}


def samples(seed: int, count: int = 2) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 4, 4)).astype(np.float32)}


def integer_pair(graph: Graph, seed: int) -> tuple[Graph, Graph]:
    """``graph`` as integers, as it is and with its channels in a random order on the same grids.

    Weights have 8 bits, 4 with exponents by block, or 2 to 8 by output channel.
    """
    ctx = PassContext(capabilities=Capabilities(weight_bits=NARROW_BITS, activation_bits=frozenset({8, 16})))
    ctx.facts.put(CalibrationData(samples(seed, 8)))
    options: dict[str, Any] = {}
    if seed % 3 == 1:
        options = {"weight_bits": 4, "end_bits": 4, "weight_block": 4}
    elif seed % 3 == 2:
        shapes = {o.result.name: o.operands[1].type.shape for o in graph.ops if o.kind in ("conv2d", "dense")}
        rng = np.random.default_rng(seed)
        widths = {x.name: Widths.of(0, rng.integers(2, 9, shapes[x.name][0])) for x in layers(graph)}
        ctx.facts.put(BitPlan({n: max(b for _, b in w.runs) for n, w in widths.items()}, {}, widths))
    quantized = Pipeline((Calibrate(), Quantize(**options))).run(graph, ctx)
    groups = channel_groups(quantized)
    after = reordered(quantized, groups, shuffled(groups, seed))
    plain, moved = (Pipeline((Dyadic(),)).run(g, PassContext()) for g in (quantized, after))
    return plain, moved


def codes_for(graph: Graph, seed: int) -> dict[str, NDArray[Any]]:
    """Random codes of the one input of an integer graph."""
    (x,) = graph.inputs
    if x.type.quant is None:
        raise ValueError("the input has no grid")
    return {"x": x.type.quant.quantize(samples(seed)["x"])}
