"""Where converters put the operations that they translate nodes into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ModelError
from qcc.frontend.limits import MAX_ALL_INDICES, MAX_ELEMENTS, MAX_RANK, Budget, count
from qcc.frontend.node import Known, Tensor, UnsupportedNodeError
from qcc.ir.build import GraphBuilder, infer
from qcc.ir.expr import Expr
from qcc.ir.graph import Attr, Graph, Op, Stage, Value
from qcc.ir.shapes import broadcast
from qcc.ir.types import BATCH

_MOVING: Final = frozenset(
    {"max_pool2d", "reduce_max", "concat", "slice", "pad", "reshape", "transpose", "gather", "argmax"}
)


class Emitter:
    """A graph builder that knows constants, and which values stand for integers of the model.

    Small integer inputs travel as f32, marked with their ONNX type until a Cast removes the mark:
    operations that compute refuse marked operands, for f32 would not wrap around as integers do.
    """

    def __init__(self, name: str, budget: Budget) -> None:
        self._builder = GraphBuilder(name)
        self._budget = budget
        self._indices = 0
        self._constants: dict[int, tuple[Known, Value]] = {}
        self._marks: dict[str, str] = {}
        self.stem = name
        """Stem of the names of new values; the importer renames results to the model's names."""

    def input(self, name: str, shape: Sequence[int], dtype: str, mark: str | None) -> Value:
        value = self._builder.input(name, shape, dtype)
        if mark:
            self._marks[value.name] = mark
        return value

    def op(self, kind: str, *operands: Value, **attrs: Attr) -> Value:
        """Append an operation. Raises VerifyError, ModelError or UnsupportedNodeError."""
        self._indices += sum(len(a) for a in attrs.values() if isinstance(a, tuple))
        if self._indices > MAX_ALL_INDICES:
            raise ModelError("the model's gathers and resizes hold too many indices")
        mark = next((m for v in operands if (m := self.mark(v))), None)
        if mark and kind not in _MOVING:
            raise UnsupportedNodeError(f"it computes on {mark}", "cast to float32 before it, or cut the graph here")
        result = self._builder.append(
            infer(Stage.FLOAT, kind, operands, self._builder.fresh(f"{self.stem}.{kind}"), attrs)
        )
        shape = result.type.shape
        if count(shape) > MAX_ELEMENTS or len(shape) > MAX_RANK:
            raise ModelError(f"{self.stem}: shape {list(shape)} is too large")
        if mark and result.type.dtype == "f32":
            self._marks[result.name] = mark
        return result

    def map(self, expr: Expr, x: Value, *parameters: Value) -> Value:
        """A pointwise operation: ``expr`` over ``x`` and the parameters ``p0``, ``p1`` …"""
        return self.op("map", x, *parameters, fn=str(expr))

    def mark(self, value: Value) -> str | None:
        """The integer type that ``value`` has in the model, if it has one."""
        return "int64" if value.type.dtype == "i64" else self._marks.get(value.name)

    def unmarked(self, value: Value) -> Value:
        """The same numbers as reals (a Cast to float32)."""
        if not self.mark(value):
            return value
        real = self.op("reshape", value, shape=value.type.shape)
        self._marks.pop(real.name, None)
        return real

    def value(self, tensor: Tensor) -> Value:
        """The graph's value for ``tensor``; a known one becomes a constant, once."""
        if isinstance(tensor, Value):
            return tensor
        if id(tensor) not in self._constants:
            self._constants[id(tensor)] = (tensor, self.constant(tensor.array, tensor.name))
        return self._constants[id(tensor)][1]

    def constant(self, array: NDArray[Any], name: str) -> Value:
        """A constant of finite float32 or of int64. Raises ModelError naming it otherwise."""
        if array.dtype == object:
            raise UnsupportedNodeError(f"constant '{name}' depends on the batch", "fix the batch size (--batch)")
        if array.dtype not in (np.float32, np.int64):
            raise UnsupportedNodeError(f"constant '{name}' holds {array.dtype}", "make it float32")
        self._budget.spend(array.nbytes)
        check_finite(array, name)
        return self._builder.constant(array, self._builder.fresh(name))

    def fits(self, x: Value, parameter: Value) -> bool:
        """Whether ``parameter`` broadcasts against ``x`` without enlarging it."""
        return broadcast([x.type.shape, parameter.type.shape]) == x.type.shape

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """``x`` in another shape; ``x`` itself if it has this shape already."""
        return x if x.type.shape == tuple(shape) else self.op("reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        """``x`` with its axes reordered. The batch must stay in front."""
        if list(perm) == list(range(x.type.rank)):
            return x
        if x.type.shape[0] == BATCH and perm[0] != 0:
            raise UnsupportedNodeError("it moves the batch away from axis 0", "fix the batch size (--batch)")
        return self.op("transpose", x, perm=tuple(perm))

    def producer(self, value: Value) -> Op | None:
        """The operation that defines ``value``; None for a graph input."""
        return self._builder.producer(value)

    def is_input(self, value: Value) -> bool:
        return self._builder.producer(value) is None

    def finish(self, outputs: Sequence[Value]) -> Graph:
        """The graph, without operations that no output needs, under its working names."""
        return self._builder.graph(outputs, prune=True)


def check_finite(array: NDArray[Any], name: str) -> None:
    """Raise ModelError, naming the tensor and the first place, if ``array`` holds NaN or infinity."""
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array)
    if bad.any():
        place = [int(i) for i in np.argwhere(bad)[0]]
        raise ModelError(f"tensor '{name}' holds {int(bad.sum())} NaN or infinite values, the first at {place}")


def check_pads(graph: Graph) -> None:
    """Refuse padding with infinity that no max pooling has absorbed: it has no place on any grid."""
    for o in graph.ops:
        if o.kind == "pad" and not np.isfinite(o.floats_attr("values")).all():
            raise ModelError(f"{o}: pads with infinity outside a max pooling; pad with a finite value")
