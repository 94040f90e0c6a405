"""Pointwise functions of one tensor: clips, and maps with an expression each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from qcc.frontend.convert.base import Converter
from qcc.frontend.emit import Emitter
from qcc.frontend.node import Node, Tensor, UnsupportedNodeError
from qcc.ir.expr import Expr, X, call
from qcc.ir.graph import Attr, Value


def _map(expression: Callable[[Node], Expr]) -> Converter:
    def convert(node: Node, emit: Emitter) -> Value:
        return emit.map(expression(node), emit.value(node.tensor(0)))

    return convert


def _function(name: str) -> Converter:
    return _map(lambda node: call(name, X))


def _relu(node: Node, emit: Emitter) -> Value:
    return emit.op("clip", emit.value(node.tensor(0)), lo=0.0)


def _clip(node: Node, emit: Emitter) -> Value:
    low = node.scalar(1, "min", node.attr_float("min", -math.inf))
    high = node.scalar(2, "max", node.attr_float("max", math.inf))
    if math.isnan(low) or math.isnan(high):
        raise node.error("a bound is NaN")
    bounds: dict[str, Attr] = {}
    if low > -3.4e38:
        bounds["lo"] = min(low, high)  # ONNX: where the bounds cross, the upper one wins
    if high < 3.4e38:
        bounds["hi"] = high
    return emit.op("clip", emit.value(node.tensor(0)), **bounds)


def _choose(negative: Expr, positive: Expr) -> Expr:
    return call("where", call("less", X, 0.0), negative, positive)


def _scaled(x: Expr, factor: float) -> Expr:
    return x if factor == 1 else call("mul", x, factor)


def _leaky_relu(node: Node) -> Expr:
    return _choose(call("mul", X, node.attr_float("alpha", 0.01)), X)


def _expm1(x: Expr) -> Expr:
    return call("sub", call("exp", x), 1.0)


def _elu(node: Node) -> Expr:
    return _choose(_scaled(_expm1(X), node.attr_float("alpha", 1.0)), X)


def _selu(node: Node) -> Expr:
    alpha = node.attr_float("alpha", 1.67326319217681884765625)
    gamma = node.attr_float("gamma", 1.05070102214813232421875)
    return call("mul", _choose(_scaled(_expm1(X), alpha), X), gamma)


def _celu(node: Node) -> Expr:
    alpha = node.attr_float("alpha", 1.0)
    if alpha == 0:
        raise node.error("alpha must not be 0")
    return _choose(_scaled(_expm1(call("div", X, alpha)), alpha), X)


def _hard_sigmoid(node: Node) -> Expr:
    line = call("add", call("mul", X, node.attr_float("alpha", 0.2)), node.attr_float("beta", 0.5))
    return call("max", call("min", line, 1.0), 0.0)


def _hard_swish(node: Node) -> Expr:
    line = call("add", call("div", X, 6.0), 0.5)
    return call("mul", X, call("max", call("min", line, 1.0), 0.0))


def _swish(node: Node) -> Expr:
    return call("mul", X, call("sigmoid", _scaled(X, node.attr_float("alpha", 1.0))))


def _gelu(node: Node) -> Expr:
    kind = node.attr_str("approximate", "none")
    half = call("mul", X, 0.5)
    if kind == "none":
        return call("mul", half, call("add", call("erf", call("div", X, math.sqrt(2))), 1.0))
    if kind != "tanh":
        raise node.error(f"unknown approximation '{kind}'")
    cubic = call("add", X, call("mul", call("mul", call("mul", X, X), X), 0.044715))
    return call("mul", half, call("add", call("tanh", call("mul", cubic, math.sqrt(2 / math.pi))), 1.0))


def _softsign(node: Node) -> Expr:
    return call("div", X, call("add", call("abs", X), 1.0))


def _mish(node: Node) -> Expr:
    return call("mul", X, call("tanh", call("softplus", X)))


def _thresholded_relu(node: Node) -> Expr:
    return call("where", call("less", Expr(node.attr_float("alpha", 1.0)), X), X, Expr(0.0))


def _shrink(node: Node) -> Expr:
    bias, bound = node.attr_float("bias", 0.0), node.attr_float("lambd", 0.5)
    above = call("where", call("less", Expr(bound), X), call("sub", X, bias), Expr(0.0))
    return call("where", call("less", X, -bound), call("add", X, bias), above)


def _reciprocal(node: Node) -> Expr:
    return call("div", Expr(1.0), X)


def _identity(node: Node, emit: Emitter) -> Tensor:
    return node.tensor(0)


def _dropout(node: Node, emit: Emitter) -> Tensor:
    if node.has(2) and node.fixed(2, "training mode").any():
        raise UnsupportedNodeError("it is in training mode", "export the model for inference")
    return node.tensor(0)


CONVERTERS: Final[Mapping[str, Converter]] = {
    **{
        name: _function(name.lower())
        for name in (
            *("Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Asin"),
            *("Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Tanh", "Erf", "Sigmoid", "Softplus"),
        )
    },
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _map(_leaky_relu),
    "Elu": _map(_elu),
    "Selu": _map(_selu),
    "Celu": _map(_celu),
    "HardSigmoid": _map(_hard_sigmoid),
    "HardSwish": _map(_hard_swish),
    "Swish": _map(_swish),
    "Gelu": _map(_gelu),
    "Softsign": _map(_softsign),
    "Mish": _map(_mish),
    "ThresholdedRelu": _map(_thresholded_relu),
    "Shrink": _map(_shrink),
    "Reciprocal": _map(_reciprocal),
    "Identity": _identity,
    "Dropout": _dropout,
}
