"""The stages of a streaming network: what flows between them, and what each computes.

A tensor flows as a *stream* of [height, width, channels] codes a frame: pixel by pixel in rows,
channels fastest. A stage reads its streams and writes one; it keeps no frame, only the rows that a
window still needs. All integers are exact: widths come from intervals that no input can leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qcc.ir.bounds import Interval
from qcc.verify.windows import Window

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Stream:
    """Codes in transit; ``codes`` bounds them, so that an element takes ``bits`` wires."""

    name: str
    height: int
    width: int
    channels: int
    codes: Interval

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> int:
        """Elements of a frame."""
        return prod(self.shape)

    @property
    def signed(self) -> bool:
        return self.codes.low < 0

    @property
    def bits(self) -> int:
        """Wires of an element: two's complement where ``signed``, else plain binary."""
        return max(1, self.codes.bits - (not self.signed))


@dataclass(frozen=True, slots=True, eq=False)
class Requant:
    """``clamp((acc * m + r * mr + c) >> shift, low, high)``.

    ``m``, ``c`` and ``mr`` are int64 [channels], or [height, width, channels] of the result where they
    vary over pixels; ``mr`` is None without a residual.
    """

    m: Array
    c: Array
    mr: Array | None
    shift: int
    low: int
    high: int


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """``op`` is the operation's kind, ``output`` has the name of its result."""

    op: str
    inputs: tuple[Stream, ...]
    output: Stream

    @property
    def name(self) -> str:
        return self.output.name


@dataclass(frozen=True, slots=True, eq=False)
class Windowed(Stage):
    """A stage whose outputs each read a window of the first input, ``x``."""

    window: Window

    @property
    def x(self) -> Stream:
        return self.inputs[0]


@dataclass(frozen=True, slots=True, eq=False)
class Contraction(Windowed):
    """Convolution or dense layer: sums of (x - zero_point) * weights over a window, requantized.

    ``weights`` int64 [groups, outputs per group, kh, kw, channels per group], less their zero point.
    ``inputs`` are x and, where ``requant.mr`` is there, the residual, of the result's shape.
    ``accumulator`` bounds every complete sum; arithmetic modulo its width is exact.
    """

    weights: Array
    zero_point: int
    requant: Requant
    accumulator: Interval

    @property
    def groups(self) -> int:
        return int(self.weights.shape[0])

    @property
    def channelwise(self) -> bool:
        """Whether every output channel reads the one input channel of its number (depthwise)."""
        return self.groups > 1 and self.weights.shape[1] == self.weights.shape[4] == 1

    @property
    def weight_bits(self) -> int:
        """Two's complement width of the weights."""
        return Interval(int(self.weights.min()), int(self.weights.max())).bits


@dataclass(frozen=True, slots=True, eq=False)
class Pool(Windowed):
    """Maximum or sum over a window, channel by channel. Sums subtract ``zero_point`` and are requantized."""

    kind: Literal["max", "sum"]
    zero_point: int
    requant: Requant | None
    accumulator: Interval


@dataclass(frozen=True, slots=True, eq=False)
class Move(Windowed):
    """Slices and pads: y[h, w, c] = x[h*sh - top, w*sw - left, c - ``first``], or ``fill`` [channels] outside of x.

    The window has one tap; its strides and leading pads may skip pixels and add some.
    """

    first: int
    fill: Array


@dataclass(frozen=True, slots=True, eq=False)
class Reduce(Stage):
    """Maximum or sum over all pixels, channel by channel; ``output`` has one pixel."""

    kind: Literal["max", "sum"]
    zero_point: int
    requant: Requant | None
    accumulator: Interval


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Stage):
    """clamp((sum of inputs[i] * multipliers[i] + requant.c) >> shift), element by element; ``requant.m`` is 1.

    Multipliers are shaped as those of ``Requant``.
    """

    multipliers: tuple[Array, ...]
    requant: Requant


@dataclass(frozen=True, slots=True, eq=False)
class Product(Stage):
    """(a - za) * (b - zb), requantized, element by element."""

    zero_points: tuple[int, int]
    requant: Requant


@dataclass(frozen=True, slots=True, eq=False)
class Lookup(Stage):
    """table[c][code - first]; ``table`` int64 [1 or channels, codes]."""

    table: Array
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class Concat(Stage):
    """``outer`` times in a frame: a run of each input's elements, in turn, as long as ``runs`` says."""

    outer: int
    runs: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """An input or output of the network: element i in transit is element ``order[i]`` of the dense tensor."""

    name: str
    stream: Stream
    shape: tuple[int, ...]
    dtype: str
    order: Array


@dataclass(frozen=True, slots=True, eq=False)
class Dataflow:
    """A network in topological order. Streams with several readers are forked; every reader gets each element."""

    name: str
    inputs: tuple[Port, ...]
    stages: tuple[Stage, ...]
    outputs: tuple[Port, ...]

    def readers(self) -> dict[str, list[tuple[int, int]]]:
        """By stream name, who reads it: (stage number, input slot), and (number of stages, slot) for outputs."""
        found: dict[str, list[tuple[int, int]]] = {}
        for number, stage in enumerate(self.stages):
            for slot, stream in enumerate(stage.inputs):
                found.setdefault(stream.name, []).append((number, slot))
        for slot, port in enumerate(self.outputs):
            found.setdefault(port.stream.name, []).append((len(self.stages), slot))
        return found


def canonical(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], Array]:
    """How a tensor of ``shape`` (without its batch) streams: [height, width, channels], and its order.

    [C, H, W] flows channels last, [K] as one pixel, [T, K] as one row; ``order`` holds dense indices.
    """
    size = prod(shape)
    dense = np.arange(size)
    if len(shape) == 3:
        c, h, w = shape
        return (h, w, c), dense.reshape(shape).transpose(1, 2, 0).reshape(-1)
    channels = shape[-1] if shape else 1
    return (1, size // max(channels, 1), channels), dense
