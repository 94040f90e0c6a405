"""Bytes as input: the normalization folds into whatever reads the image first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcc.errors import ConfigError, PassError
from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH, Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.verify.interp import evaluate
from qcc_passes.byte_input import ByteInput

RGB: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.25, 0.2, 0.1), "scale": 1 / 255}
WINDOW: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1)}
Body = Callable[["Net", Value], Value]


class Net(GraphBuilder):
    """A builder with random weights."""

    def __init__(self) -> None:
        super().__init__("net")
        self._rng = np.random.default_rng(11)

    def weights(self, *shape: int) -> Value:
        return self.constant(self._rng.normal(size=shape).astype(np.float32), "w")

    def conv(self, x: Value, pads: tuple[int, ...] = (0, 0, 0, 0), groups: int = 1) -> Value:
        channels = x.type.shape[1]
        w = self.weights(2 * groups, channels // groups, 3, 3)
        return self.op("conv2d", [x, w, self.weights(2 * groups)], groups=groups, pads=pads, **WINDOW)


def _network(body: Body, shape: tuple[int, ...] = (BATCH, 3, 6, 6)) -> Graph:
    net = Net()
    return net.graph([body(net, net.input("image", shape))])


def _bytes(graph: Graph, *, count: int = 4) -> NDArray[np.float32]:
    (x,) = graph.inputs
    return np.random.default_rng(2).integers(0, 256, (count, *x.type.shape[1:])).astype(np.float32)


def _fold(graph: Graph, ctx: PassContext | None = None, **options: Any) -> Graph:
    passes = (make_pass("byte-input", options), make_pass("canonicalize"))
    return Pipeline(passes).run(graph, ctx or PassContext())


def _check(graph: Graph, tolerance: float = 1e-5, **options: Any) -> Graph:
    """Fold, and compare on bytes with the graph before on the reals that they stand for."""
    after = _fold(graph, **options)
    (name,) = (v.name for v in graph.outputs)
    assert after.inputs[0].type.quant == Quant(8, False, (Dyadic(1, 0),))
    codes = _bytes(after)
    wanted = evaluate(graph, {"image": ByteInput(**options).to_real(codes, graph)})[name]
    got = evaluate(after, {"image": codes})[name]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())
    return after


def _kinds(graph: Graph) -> list[str]:
    return [o.kind for o in graph.ops if o.kind != "constant"]


def test_a_convolution_takes_the_normalization_in() -> None:
    assert _kinds(_check(_network(lambda n, x: n.conv(x)), **RGB)) == ["conv2d"]


def test_grouped_convolutions_take_it_in_by_group() -> None:
    assert _kinds(_check(_network(lambda n, x: n.conv(x, groups=3)), **RGB)) == ["conv2d"]


def test_a_dense_layer_behind_a_flattening_takes_it_in() -> None:
    def body(n: Net, x: Value) -> Value:
        flat = n.op("reshape", [x], shape=(BATCH, 108))
        return n.op("dense", [flat, n.weights(5, 108), n.weights(5)])

    assert _kinds(_check(_network(body), **RGB)) == ["reshape", "dense"]


@pytest.mark.parametrize("layout", [None, "NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(BATCH, 3, 6, 6), (BATCH, 6, 6, 3)])
def test_layouts_of_bytes_and_of_the_model(layout: str | None, shape: tuple[int, ...]) -> None:
    def body(n: Net, x: Value) -> Value:
        return n.conv(x if shape[1] == 3 else n.op("transpose", [x], perm=(0, 3, 1, 2)))

    after = _check(_network(body, shape), layout=layout, **RGB)
    given = layout or ("NCHW" if shape[1] == 3 else "NHWC")
    assert after.inputs[0].type.shape == ((BATCH, 3, 6, 6) if given == "NCHW" else (BATCH, 6, 6, 3))
    assert _kinds(after) == (["conv2d"] if given == "NCHW" else ["transpose", "conv2d"])


def test_padding_becomes_the_bytes_nearest_to_zero() -> None:
    graph = _network(lambda n, x: n.conv(x, (1, 1, 1, 1)))
    exact = _check(graph, mean=(51.0, 102.0, 0.0), std=(10.0,))
    assert [o.attrs["values"] for o in exact.ops if o.kind == "pad"] == [(51.0, 102.0, 0.0)]
    rounded = _check(graph, tolerance=0.02, **RGB)
    assert [o.attrs["values"] for o in rounded.ops if o.kind == "pad"] == [(128.0, 102.0, 76.0)]
    assert _kinds(_check(graph, scale=1 / 255)) == ["conv2d"], "zero is a byte: the convolution pads itself"


def test_zero_beyond_the_bytes_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    graph = _network(lambda n, x: n.conv(x, (1, 1, 1, 1)))
    with caplog.at_level(logging.WARNING):
        _fold(graph, mean=(-30.0,))
    assert "no byte stands for zero; its padding is off by 30.0 bytes" in caplog.text


def test_several_first_layers_share_one_padding() -> None:
    def body(n: Net, x: Value) -> Value:
        return n.op("mul", [n.conv(x, (1, 1, 1, 1)), n.conv(x, (1, 1, 1, 1))])

    after = _check(_network(body), mean=(51.0, 102.0, 0.0), std=(10.0, 20.0, 30.0))
    assert _kinds(after).count("pad") == 1


def test_movement_before_the_first_layer() -> None:
    def body(n: Net, x: Value) -> Value:
        parts = [n.op("slice", [x], axis=2, start=i, stop=6, step=2) for i in (0, 1)]
        joined = n.op("concat", parts, axis=1)
        pooled = n.op("max_pool2d", [joined], kernel=(1, 2), pads=(0,) * 4, **WINDOW)
        return n.conv(n.op("gather", [pooled], axis=1, indices=(5, 0, 3, 1)))

    assert "map" not in _kinds(_check(_network(body), **RGB))


def test_the_model_s_own_normalization_composes() -> None:
    def body(n: Net, x: Value) -> Value:
        mean = n.constant(np.array([7.0, 8.0, 9.0], np.float32).reshape(3, 1, 1), "m")
        return n.conv(n.op("sub", [x, mean]), (1, 1, 1, 1))

    after = _check(_network(body))
    assert [o.attrs["values"] for o in after.ops if o.kind == "pad"] == [(7.0, 8.0, 9.0)]


def test_what_cannot_take_it_in_gets_the_reals_from_a_table(caplog: pytest.LogCaptureFixture) -> None:
    def body(n: Net, x: Value) -> Value:
        return n.op(
            "avg_pool2d", [x], kernel=(2, 2), pads=(0,) * 4, ceil_pads=(0, 0), count_include_pad=False, **WINDOW
        )

    with caplog.at_level(logging.INFO):
        assert _kinds(_check(_network(body), **RGB)) == ["map", "avg_pool2d"]
    assert "a table restores %image" in caplog.text


def test_padding_with_a_real_that_no_byte_stands_for() -> None:
    def body(n: Net, x: Value) -> Value:
        return n.conv(n.op("pad", [x], pads=(0, 0, 1, 1, 0, 0, 1, 1), values=(99.0,)))

    assert _kinds(_check(_network(body), **RGB)) == ["map", "pad", "conv2d"]


def test_calibration_data_follow_the_layout() -> None:
    graph = _network(lambda n, x: n.conv(x))
    data = _bytes(graph)
    ctx = PassContext()
    ctx.facts.put(CalibrationData({"image": data}, digest="d"))
    after = _fold(graph, ctx, layout="NHWC")
    turned = ctx.facts.get(CalibrationData)
    turned.check(after)
    np.testing.assert_array_equal(turned.arrays["image"], data.transpose(0, 2, 3, 1))
    assert turned.digest != "d"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input": "picture"}, "no input 'picture'; the model has image"),
        ({"mean": (1.0, 2.0)}, "mean has 2 entries, 'image' 3 channels"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"std": ()}, "std"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _fold(_network(lambda n, x: n.conv(x)), **options)


def test_inputs_that_are_no_images() -> None:
    graph = _network(lambda n, x: n.op("dense", [x, n.weights(2, 7), n.weights(2)]), (BATCH, 7))
    _check(graph, mean=(3.0,), std=(2.0,))
    with pytest.raises(ConfigError, match="takes no images"):
        _fold(graph, layout="NHWC")


def test_one_of_several_inputs() -> None:
    n = Net()
    graph = n.graph([n.op("add", [n.conv(n.input(name, (BATCH, 3, 6, 6))) for name in ("image", "depth")])])
    with pytest.raises(ConfigError, match="inputs image, depth; say which"):
        _fold(graph)
    after = _fold(graph, input="depth")
    assert [v.type.quant is not None for v in after.inputs] == [False, True]


def test_outputs_that_would_become_bytes() -> None:
    with pytest.raises(PassError, match=r"output %transpose only moves the input"):
        _fold(_network(lambda n, x: n.op("transpose", [x], perm=(0, 2, 3, 1))), **RGB)
