"""Which channels may change seats, and what pins the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcc.errors import PassError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc_passes.channel_groups import channel_groups
from qcc_passes.channel_orders import reordered


class Net:
    """A builder that makes weights up; ``x`` has 2 channels of 4 by 4, ``a`` and ``b`` 4 free ones each."""

    def __init__(self) -> None:
        self.builder = GraphBuilder("net")
        self.x = self.builder.input("x", (BATCH, 2, 4, 4))
        self.a, self.b = self.conv("a", self.x, 4), self.conv("b", self.x, 4)

    def constant(self, *shape: int, quant: Quant | None = None) -> Value:
        return self.builder.constant(np.ones(shape, np.float32), "c", quant)

    def conv(self, name: str, x: Value, count: int, *rest: Value, groups: int = 1) -> Value:
        w = self.constant(count, x.type.shape[1] // groups, 1, 1)
        attrs: dict[str, Any] = {"strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1), "groups": groups}
        return self.op(name, "conv2d", x, w, self.constant(count), *rest, **attrs)

    def dense(self, name: str, x: Value, count: int) -> Value:
        return self.op(name, "dense", x, self.constant(count, x.type.shape[-1]), self.constant(count))

    def op(self, name: str, kind: str, *operands: Value, **attrs: Any) -> Value:
        return self.builder.op(kind, operands, name=name, **attrs)

    def graph(self, *values: Value) -> Graph:
        """Ends in averages over everything, which no order changes."""
        ends = [self.op(f"end{i}", "reduce_mean", v, axes=_axes(v), keepdims=False) for i, v in enumerate(values)]
        return self.builder.graph(ends, prune=True)


def _axes(value: Value) -> tuple[int, ...]:
    return tuple(range(1, value.type.rank))


def free(graph: Graph) -> dict[str, int]:
    """For every value, how many of its channels may move, where any may."""
    groups = channel_groups(graph)
    moving = {c for members in groups.free for c in members.channels}
    counts = {name: len(moving & set(label.channels.flat)) for name, label in groups.labels.items()}
    return {name: count for name, count in counts.items() if count}


def reasons(graph: Graph) -> str:
    return "; ".join(r for c in channel_groups(graph).classes for r in c.pinned)


def test_addition_makes_channels_one() -> None:
    n = Net()
    groups = channel_groups(n.graph(n.op("y", "add", n.a, n.b)))
    (members,) = groups.free
    assert members.axes == (("a", (1,)), ("b", (1,)), ("y", (1,)))
    assert len(members.channels) == 4


def test_a_residual_makes_channels_one() -> None:
    n = Net()
    (members,) = channel_groups(n.graph(n.conv("y", n.a, 4, n.b))).free[1:]
    assert [name for name, _ in members.axes] == ["b", "y"]


def test_segments_of_a_concatenation_stay_apart() -> None:
    n = Net()
    groups = channel_groups(n.graph(n.op("y", "concat", n.a, n.b, axis=1)))
    assert [[name for name, _ in c.axes] for c in groups.free] == [["a", "y"], ["b", "y"]]


def test_a_slice_splits_a_class() -> None:
    n = Net()
    groups = channel_groups(n.graph(n.op("y", "slice", n.a, axis=1, start=1, stop=4, step=2), n.a))
    assert [len(c.channels) for c in groups.free] == [2, 2]


def test_a_concatenation_of_one_value_twice_moves_as_one() -> None:
    n = Net()
    twice = n.op("y", "concat", n.a, n.op("r", "clip", n.a, lo=0.0), axis=1)
    groups = channel_groups(n.graph(n.conv("z", twice, 2)))
    assert [len(c.channels) for c in groups.free] == [4, 2]
    assert len(set(zip(*(a.flat for a in (groups.labels["y"].channels, groups.labels["y"].lanes)), strict=True))) == 8


def test_a_grouped_convolution_keeps_groups_on_both_sides() -> None:
    n = Net()
    groups = channel_groups(n.graph(n.conv("y", n.a, 8, groups=2)))
    assert [[name for name, _ in c.axes] for c in groups.free] == [["a"], ["a"], ["y"], ["y"]]
    assert [len(c.channels) for c in groups.free] == [2, 2, 4, 4]


def test_a_depthwise_multiplier_moves_whole_channels() -> None:
    n = Net()
    groups = channel_groups(n.graph(n.conv("y", n.a, 8, groups=4)))
    (members,) = groups.free
    assert len(members.channels) == 4
    assert groups.labels["y"].lanes.reshape(-1).tolist() == [0, 1] * 4


def test_a_depthwise_convolution_of_the_input_is_pinned() -> None:
    n = Net()
    graph = n.graph(n.conv("y", n.x, 4, groups=2))
    assert free(graph) == {}
    assert reasons(graph) == "%x is an input"


def test_flattening_keeps_the_lanes_of_a_depthwise_multiplier_apart() -> None:
    n = Net()
    flat = n.op("f", "reshape", n.conv("y", n.a, 8, groups=4), shape=(BATCH, 128))
    groups = channel_groups(n.graph(n.dense("d", flat, 2)))
    assert [len(c.channels) for c in groups.free] == [4, 2]
    assert sorted(groups.labels["f"].lanes[groups.labels["f"].channels == 2]) == list(range(32))


def test_channels_that_a_slice_cuts_unevenly_part() -> None:
    n = Net()
    twice = n.op("k", "concat", n.a, n.op("r", "clip", n.a, lo=0.0), axis=1)
    groups = channel_groups(n.graph(n.conv("y", n.op("s", "slice", twice, axis=1, start=0, stop=6, step=1), 1)))
    assert [len(c.channels) for c in groups.free] == [2, 2]


def test_groups_are_kept_lane_by_lane() -> None:
    n = Net()
    twice = n.op("k", "concat", n.a, n.op("r", "clip", n.a, lo=0.0), axis=1)
    mixed = n.op("g", "gather", twice, axis=1, indices=(0, 1, 6, 7, 4, 5, 2, 3))
    groups = channel_groups(n.graph(n.conv("y", mixed, 2, groups=2)))
    assert [len(c.channels) for c in groups.free] == [2, 2]


def test_a_concatenation_gives_rows_a_fixed_place() -> None:
    n = Net()
    rows = n.op("t", "transpose", n.conv("z", n.a, 1), perm=(0, 2, 1, 3))
    joined = n.op("k", "concat", n.op("m", "reduce_max", n.b, axes=(2,), keepdims=True), rows, axis=1)
    graph = n.graph(n.conv("y", joined, 2))
    assert free(graph) == {"a": 4, "b": 4, "m": 4, "k": 4, "y": 2}
    assert "the order of %t is fixed" in reasons(graph)


def test_flattening_takes_pixels_along() -> None:
    n = Net()
    for name, perm in (("first", (0, 1, 2, 3)), ("last", (0, 2, 3, 1))):
        flat = n.op(f"{name}.flat", "reshape", n.op(name, "transpose", n.a, perm=perm), shape=(BATCH, 64))
        n.dense(f"{name}.y", flat, 3)
    graph = n.builder.graph([n.op("y", "softmax", n.dense("d", flat, 3), axis=1)], prune=True)
    assert free(graph) == {"a": 4, "last": 4, "last.flat": 4}


def test_a_shuffle_of_two_groups_stays_free() -> None:
    n = Net()
    split = n.op("s", "reshape", n.a, shape=(BATCH, 2, 2, 4, 4))
    whole = n.op("w", "reshape", n.op("t", "transpose", split, perm=(0, 2, 1, 3, 4)), shape=(BATCH, 4, 4, 4))
    graph = n.graph(n.conv("y", whole, 2))
    assert free(graph) == {"a": 4, "s": 4, "t": 4, "w": 4, "y": 2}
    assert channel_groups(graph).labels["w"].channels.reshape(-1).tolist() == [2, 4, 3, 5]


def test_heads_share_an_order_within_themselves() -> None:
    n = Net()
    tokens = n.op("tokens", "transpose", n.op("flat", "reshape", n.a, shape=(BATCH, 4, 16)), perm=(0, 2, 1))

    def heads(name: str, perm: tuple[int, ...]) -> Value:
        split = n.op(f"{name}.split", "reshape", n.dense(name, tokens, 6), shape=(BATCH, 16, 2, 3))
        return n.op(f"{name}.heads", "transpose", split, perm=perm)

    scores = n.op("s", "matmul", heads("q", (0, 2, 1, 3)), heads("k", (0, 2, 3, 1)))
    mixed = n.op("m", "matmul", n.op("p", "softmax", scores, axis=3), heads("v", (0, 2, 1, 3)))
    back = n.op("o", "reshape", n.op("t", "transpose", mixed, perm=(0, 2, 1, 3)), shape=(BATCH, 16, 6))
    groups = channel_groups(n.graph(n.dense("y", back, 5)))
    named = [(len(c.channels), [name for name, _ in c.axes if "." not in name]) for c in groups.free]
    assert named == [
        (4, ["a", "flat", "tokens"]),
        (3, ["q", "k"]),
        (3, ["q", "k"]),
        (3, ["v", "m", "t", "o"]),
        (3, ["v", "m", "t", "o"]),
        (5, ["y"]),
    ]


def test_padding_adds_channels_of_its_own() -> None:
    n = Net()
    wide = n.op("p", "pad", n.a, pads=(0, 1, 0, 0, 0, 2, 0, 0), values=(0.0,))
    groups = channel_groups(n.graph(n.conv("y", wide, 2)))
    assert [len(c.channels) for c in groups.free] == [4, 3, 2]


def _gathered(n: Net) -> Value:
    return n.op("y", "gather", n.a, axis=1, indices=(0, 0, 1))


def _padded(n: Net) -> Value:
    return n.op("y", "pad", n.a, pads=(0, 0, 1, 0, 0, 0, 0, 0), values=(0.0, 1.0, 2.0, 3.0))


def _joined_rows(n: Net) -> Value:
    return n.op("y", "concat", n.a, n.b, axis=2)


def _pooled_channels(n: Net) -> Value:
    turned = n.op("t", "transpose", n.a, perm=(0, 2, 1, 3))
    window = {"kernel": (2, 2), "strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    return n.op("y", "max_pool2d", turned, **window)


def _turned_conv(n: Net) -> Value:
    return n.op(
        "y", "reduce_max", n.conv("z", n.op("t", "transpose", n.a, perm=(0, 2, 1, 3)), 1), axes=(1,), keepdims=True
    )


def _grouped_mean(n: Net) -> Value:
    split = n.op("s", "reshape", n.a, shape=(BATCH, 2, 2, 4, 4))
    return n.op("y", "reduce_mean", split, axes=(2,), keepdims=False)


def _grouped_softmax(n: Net) -> Value:
    return n.op("y", "softmax", n.op("s", "reshape", n.a, shape=(BATCH, 2, 2, 4, 4)), axis=1)


def _fixed_order(n: Net) -> Value:
    return n.op("y", "add", n.a, n.op("t", "transpose", n.b, perm=(0, 2, 1, 3)))


def _crossed_rows(n: Net) -> Value:
    row = n.op("r", "reduce_max", n.b, axes=(2,), keepdims=True)
    return n.op("y", "add", n.a, n.op("t", "transpose", row, perm=(0, 2, 1, 3)))


def _unlabelled(n: Net) -> Value:
    row = n.op("row", "reduce_mean", n.b, axes=(1,), keepdims=False)
    return n.op("y", "mul", n.a, n.op("r", "reshape", row, shape=(BATCH, 4, 4, 1)))


def _unknown(n: Net) -> Value:
    c = [n.constant(4) for _ in range(4)]
    return n.op("y", "batch_norm", n.a, *c, epsilon=1e-3)


def _varying_weights(n: Net) -> Value:
    flat = n.op("f", "reduce_mean", n.a, axes=(2, 3), keepdims=False)
    return n.op("y", "dense", flat, n.op("w", "clip", n.constant(3, 4)), n.constant(3))


def _constant_product(n: Net) -> Value:
    return n.op("y", "matmul", n.a, n.constant(4, 4))


def _crossed_product(n: Net) -> Value:
    return n.op("y", "matmul", n.op("s", "transpose", n.a, perm=(0, 2, 3, 1)), n.op("t", "clip", n.b))


def _halves(n: Net) -> Value:
    parts = [n.op(f"s{i}", "slice", n.a, axis=1, start=2 * i, stop=2 * i + 2, step=1) for i in (0, 1)]
    return n.op("y", "add", *parts)


def _varying_parameters(n: Net) -> Value:
    return n.op("y", "map", n.a, n.op("p", "reduce_max", n.a, axes=(1,), keepdims=True), fn="mul(x, p0)")


def _per_channel_grid(n: Net) -> Value:
    grid = Quant(8, True, (Dyadic(1, 0),) * 4, axis=0)
    return n.op("y", "add", n.a, n.constant(4, 1, 1, quant=grid))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_gathered, "gather %y repeats channels of it"),
        (_padded, "pad %y pads each channel with another value"),
        (_joined_rows, "concat %y joins it along another axis than that of its channels"),
        (_pooled_channels, "max_pool2d %y slides over its channels"),
        (_turned_conv, "conv2d %z reads it, though its channels are not on axis 1"),
        (_grouped_mean, "reduce_mean %y reduces it in groups"),
        (_grouped_softmax, "softmax %y normalizes it in groups"),
        (_fixed_order, "add %y combines it with %t, which has another order"),
        (_crossed_rows, "add %y combines it with %t, which has another order"),
        (_unlabelled, "mul %y combines it with %r, which has another order"),
        (_unknown, "batch_norm %y reads it in a way that is not understood"),
        (_varying_weights, "dense %y has weights that vary"),
        (_constant_product, "matmul %y multiplies it with a constant, or with fewer axes"),
        (_crossed_product, "matmul %y multiplies channels in different orders"),
        (_halves, "%a holds one channel several times"),
        (_varying_parameters, "map %y has parameters that vary"),
        (_per_channel_grid, "add %y combines it with the per-channel grid of %c_4"),
    ],
    ids=lambda p: p.__name__.strip("_") if callable(p) else "",
)
def test_pins(make: Any, why: str) -> None:
    n = Net()
    graph = n.graph(make(n))
    assert why in reasons(graph)
    assert "a" not in free(graph)


def test_positions_pin() -> None:
    n = Net()
    graph = n.builder.graph([n.op("y", "argmax", n.a, axis=1, keepdims=False)], prune=True)
    assert free(graph) == {}
    assert "argmax %y gives positions of it" in reasons(graph)


def test_outputs_pin() -> None:
    n = Net()
    graph = n.builder.graph([n.a], prune=True)
    assert "%a is an output" in reasons(graph)
    assert free(graph) == {}


def test_the_description_names_classes_axes_and_reasons() -> None:
    n = Net()
    y = n.conv("y", n.a, 1)
    assert channel_groups(n.builder.graph([y], prune=True)).describe() == (
        "3 classes, 1 of them free: 4 of 7 channels\n"
        "  0: 2 channels, pinned: %x is an input\n    %x[1]\n"
        "  1: 4 channels, free\n    %a[1]\n"
        "  2: 1 channel, pinned: %y is an output\n    %y[]\n"
    )


@pytest.mark.parametrize(
    ("order", "message"), [({2: 2, 3: 2}, "no permutation"), ({2: 6}, "no permutation"), ({0: 1, 1: 0}, "cannot move")]
)
def test_only_permutations_of_free_classes_are_taken(order: dict[int, int], message: str) -> None:
    n = Net()
    graph = n.graph(n.a, n.b)
    with pytest.raises(PassError, match=message):
        reordered(graph, channel_groups(graph), order)
