"""Why a node type has no converter, and what its user can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qcc.frontend.node import FIX_BATCH, UnsupportedNodeError

_CUT: Final = "end the model before it and do this step outside"

_GROUPS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("recurrent layers are not supported", "replace it by convolutions"): ("LSTM", "GRU", "RNN"),
    ("control flow is not supported", "export the model with the branch or the number of rounds fixed"): (
        *("If", "Loop", "Scan", "SequenceMap"),
    ),
    ("normalization by statistics computed at run time is not supported", "use BatchNormalization"): (
        *("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"),
        *("LpNormalization", "MeanVarianceNormalization", "LRN"),
    ),
    ("Lp pooling is not supported", "use average or max pooling"): ("LpPool", "GlobalLpPool"),
    ("attention is not supported", "qcc compiles convolutional networks"): (
        *("Attention", "RotaryEmbedding", "LinearAttention", "TensorScatter"),
    ),
    ("the model is already quantized", "give qcc the float model; it quantizes by itself"): (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
    ),
    ("the size of its result depends on the data", _CUT): (
        *("NonMaxSuppression", "NonZero", "TopK", "Unique", "Compress"),
    ),
    ("random numbers have no place in an exact graph", "export the model for inference"): (
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"),
    ),
}
_REASONS: Final = {op: why for why, ops in _GROUPS.items() for op in ops}


def no_counterpart(op: str) -> UnsupportedNodeError:
    """The error for a node of the default domain that no converter takes."""
    reason, advice = _REASONS.get(op, ("this operation is not supported", f"rewrite it with supported ones, or {_CUT}"))
    return UnsupportedNodeError(reason, advice)


def only_constant(op: str) -> UnsupportedNodeError:
    """The error for a node that can be folded, but whose inputs are computed at run time."""
    advice = f"make its inputs constants, or {FIX_BATCH} if they are computed from shapes"
    return UnsupportedNodeError(*_REASONS.get(op, ("its inputs are computed at run time", advice)))


def foreign_domain(domain: str) -> UnsupportedNodeError:
    """The error for a node of another domain than ONNX's own."""
    return UnsupportedNodeError(
        f"operations of domain '{domain}' are not supported",
        "export with standard ONNX operations (inline model-local functions, disable vendor optimizations)",
    )
