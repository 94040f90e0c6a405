"""A small network with and without groups of channels, for tests of what weights look like."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcc.ir.build import GraphBuilder
from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.target import NARROW_BITS, Capabilities


def network(seed: int = 3) -> Graph:
    """Convolutions with and without groups, and a dense layer; input channels of very different weights."""
    b, rng = GraphBuilder("net"), np.random.default_rng(seed)
    x = b.input("x", (BATCH, 12, 5, 5))

    def conv(x: Value, outputs: int, groups: int, size: int) -> Value:
        inputs = x.type.shape[1] // groups
        shape = (outputs, inputs, size, size)
        w = rng.normal(size=shape) * np.exp(rng.normal(size=(1, inputs, 1, 1)))
        window: dict[str, Any] = {"strides": (1, 1), "dilations": (1, 1), "pads": (size // 2,) * 4}
        operands = [x, b.constant(w.astype(np.float32), "w"), b.constant(np.zeros(outputs, np.float32), "b")]
        return b.op("conv2d", operands, groups=groups, lo=0.0, **window)

    y = conv(conv(conv(x, 40, 1, 3), 40, 2, 1), 24, 1, 3)
    y = b.op("reduce_mean", [y], axes=(2, 3), keepdims=False)
    w = rng.normal(size=(10, 24)).astype(np.float32)
    return b.graph([b.op("dense", [y, b.constant(w, "w"), b.constant(np.zeros(10, np.float32), "b")])])


def context(seed: int = 4) -> PassContext:
    ctx = PassContext(capabilities=Capabilities(weight_bits=NARROW_BITS, activation_bits=frozenset({8, 16})))
    rng = np.random.default_rng(seed)
    ctx.facts.put(CalibrationData({"x": rng.normal(size=(64, 12, 5, 5)).astype(np.float32)}))
    return ctx
