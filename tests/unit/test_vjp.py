"""Every vector-Jacobian product against central finite differences in float64."""

from typing import Any

import numpy as np
import pytest

from qcc.errors import PassError
from qcc.ir.graph import Op, Value, op
from qcc.ir.opset import OPSET, REAL
from qcc.ir.shapes import Shape
from qcc.ir.types import TensorType
from qcc.verify.interp import RULES
from qcc_passes.vjp import vjp

CONV = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
POOL = {"kernel": (3, 2), "strides": (2, 2), "pads": (1, 0, 1, 1), "dilations": (1, 1)}

CASES: dict[str, tuple[str, list[Shape], dict[str, Any]]] = {
    "conv2d": ("conv2d", [(2, 3, 5, 6), (4, 3, 3, 3), (4,)], CONV),
    "conv2d strided, dilated": (
        "conv2d",
        [(1, 2, 9, 8), (3, 2, 3, 2), (3,)],
        {**CONV, "strides": (2, 3), "pads": (0, 1, 2, 0), "dilations": (2, 1)},
    ),
    "conv2d grouped": ("conv2d", [(2, 4, 5, 5), (6, 2, 3, 3), (6,)], {**CONV, "groups": 2}),
    "conv2d depthwise": ("conv2d", [(2, 4, 5, 5), (4, 1, 3, 3), (4,)], {**CONV, "groups": 4, "strides": (2, 2)}),
    "conv2d residual, clamped": (
        "conv2d",
        [(1, 2, 4, 4), (3, 2, 3, 3), (3,), (1, 3, 4, 4)],
        {**CONV, "lo": 0.0, "hi": 2.0},
    ),
    "dense": ("dense", [(3, 5), (4, 5), (4,)], {}),
    "dense residual": ("dense", [(2, 3, 5), (4, 5), (4,), (2, 3, 4)], {"lo": 0.0}),
    "matmul": ("matmul", [(2, 1, 3, 4), (5, 4, 2)], {}),
    "add": ("add", [(2, 3, 4), (3, 1)], {"hi": 0.5}),
    "sub": ("sub", [(2, 3, 4), (4,)], {}),
    "mul": ("mul", [(2, 3, 4), (1, 3, 1)], {}),
    "clip": ("clip", [(2, 9)], {"lo": -0.5, "hi": 0.7}),
    "map": ("map", [(2, 3, 4)], {"fn": "mul(x, sigmoid(mul(x, 1.7)))"}),
    "max_pool2d": ("max_pool2d", [(2, 3, 6, 7)], POOL),
    "avg_pool2d": ("avg_pool2d", [(2, 3, 6, 6)], {**POOL, "ceil_pads": (1, 0), "count_include_pad": False}),
    "avg_pool2d, padding counted": (
        "avg_pool2d",
        [(2, 3, 6, 6)],
        {**POOL, "ceil_pads": (1, 0), "count_include_pad": True},
    ),
    "reduce_mean": ("reduce_mean", [(2, 3, 4, 5)], {"axes": (2, 3), "keepdims": False}),
    "reduce_sum": ("reduce_sum", [(2, 3, 4)], {"axes": (1,), "keepdims": True}),
    "reduce_max": ("reduce_max", [(2, 3, 4)], {"axes": (1, 2), "keepdims": False}),
    "concat": ("concat", [(2, 3, 4), (2, 1, 4), (2, 2, 4)], {"axis": 1}),
    "slice": ("slice", [(2, 7, 4)], {"axis": 1, "start": 1, "stop": 6, "step": 2}),
    "pad": ("pad", [(2, 3, 4)], {"pads": (0, 1, 2, 0, 0, 1), "values": (0.5,)}),
    "reshape": ("reshape", [(2, 3, 4)], {"shape": (2, 12)}),
    "transpose": ("transpose", [(2, 3, 4)], {"perm": (0, 2, 1)}),
    "gather": ("gather", [(2, 3, 4)], {"axis": 2, "indices": (3, 0, 0, 1)}),
    "dilate2d": ("dilate2d", [(1, 2, 3, 4)], {"factors": (2, 3)}),
    "resize_linear": (
        "resize_linear",
        [(1, 2, 3, 2)],
        {"h0": (0, 0, 1), "h1": (1, 1, 2), "hf": (0.0, 0.25, 0.5), "w0": (0, 1), "w1": (1, 1), "wf": (0.75, 0.0)},
    ),
    "softmax": ("softmax", [(2, 5)], {"axis": 1}),
}


def build(kind: str, shapes: list[Shape], attrs: dict[str, Any]) -> Op:
    operands = [Value(f"v{i}", TensorType(s, "f32")) for i, s in enumerate(shapes)]
    draft = op(kind, operands, [Value("y", TensorType((), "f32"))], **attrs)
    return op(kind, operands, [Value("y", TensorType(OPSET[kind].shape(draft), "f32"))], **attrs)


@pytest.mark.parametrize("case", CASES)
def test_rule_matches_finite_differences(case: str) -> None:
    o = build(*CASES[case])
    rng = np.random.default_rng(7)
    # Distinct, well separated values keep maxima and clamps away from their kinks.
    operands = [
        (rng.permutation(int(np.prod(v.type.shape))).reshape(v.type.shape) / 7.3 - 1.03).astype(np.float64)
        if o.kind in ("max_pool2d", "reduce_max")
        else rng.normal(size=v.type.shape)
        for v in o.operands
    ]
    result = RULES[o.kind](o, operands)
    assert result.dtype == np.float64, "the oracle must run in double precision here"
    cotangent = rng.normal(size=result.shape)
    grads = vjp(o, operands, result, cotangent)
    step = 1e-6
    for index, grad in enumerate(grads):
        assert grad is not None
        direction = rng.normal(size=operands[index].shape)
        ends = []
        for sign in (1, -1):
            moved = [a + sign * step * direction if i == index else a for i, a in enumerate(operands)]
            ends.append(float((RULES[o.kind](o, moved) * cotangent).sum()))
        assert float((grad * direction).sum()) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-7)


def test_every_real_operation_has_a_case() -> None:
    tested = {kind for kind, _, _ in CASES.values()}
    assert {k for k, s in OPSET.items() if s.stages >= REAL} - tested == {"constant", "argmax"}


def test_argmax_has_no_derivative() -> None:
    o = op(
        "argmax",
        [Value("x", TensorType((2, 5), "f32"))],
        [Value("y", TensorType((2,), "i64"))],
        axis=1,
        keepdims=False,
    )
    with pytest.raises(PassError, match=r"argmax.*has no derivative"):
        vjp(o, [np.zeros((2, 5))], np.zeros(2), np.zeros(2))
