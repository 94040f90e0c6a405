"""The converter protocol."""

from collections.abc import Callable, Sequence

from qcc.frontend.emit import Emitter
from qcc.frontend.node import Node, Tensor

Converter = Callable[[Node, Emitter], Tensor | Sequence[Tensor]]
"""Emits what a node computes and returns its outputs, in order; it may leave out trailing ones.

Raises ModelError when the node is malformed, UnsupportedNodeError when it is sound but has no
counterpart; what shape inference (VerifyError) and numpy raise counts as malformed.
"""
