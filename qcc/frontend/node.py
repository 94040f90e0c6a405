"""One ONNX node as converters see it: its inputs as values or arrays, its attributes typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto

from qcc.errors import ModelError
from qcc.frontend.dims import Dim
from qcc.frontend.tensors import TensorReader, numpy_type
from qcc.ir.graph import Value

FIX_BATCH: Final = "fix the batch size (--batch)"


class UnsupportedNodeError(Exception):
    """A sound node that has no counterpart; ``advice`` says what the user can do about it."""

    def __init__(self, reason: str, advice: str) -> None:
        self.reason = reason
        self.advice = advice
        super().__init__(f"{reason}; {advice}")


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A tensor known at import time; an object array holds ``int`` and ``Dim`` (see ``dims``)."""

    array: NDArray[Any]
    name: str

    @property
    def symbolic(self) -> bool:
        return self.array.dtype == object


Tensor = Known | Value
"""What a name of the ONNX graph stands for: known now, or computed at run time."""

_KINDS: Final[Mapping[int, str]] = {
    AttributeProto.FLOAT: "f",
    AttributeProto.INT: "i",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.FLOATS: "floats",
    AttributeProto.INTS: "ints",
}
_WORDS: Final[Mapping[str, str]] = {
    "f": "a number",
    "i": "an integer",
    "s": "text",
    "t": "a tensor",
    "floats": "a list of numbers",
    "ints": "a list of integers",
}


class Node:
    """A node with its inputs resolved; every getter raises ModelError when the node is malformed."""

    def __init__(self, proto: NodeProto, opset: int, inputs: tuple[Tensor | None, ...], reader: TensorReader) -> None:
        self.op: str = proto.op_type
        self.opset = opset
        self.inputs = inputs
        self.output_count = len(proto.output)
        self.label = label(proto)
        self._attributes = {a.name: a for a in proto.attribute}
        self._reader = reader

    def __str__(self) -> str:
        return self.label

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.label}: {what}")

    def has(self, index: int) -> bool:
        """Whether the optional input at ``index`` is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def tensor(self, index: int) -> Tensor:
        tensor = self.inputs[index] if index < len(self.inputs) else None
        if tensor is None:
            raise self.error(f"input {index} is missing")
        return tensor

    def known(self, index: int, what: str) -> NDArray[Any]:
        """The array of an input that must be known now. Raises UnsupportedNodeError if it is not."""
        tensor = self.tensor(index)
        if isinstance(tensor, Value):
            advice = f"make it a constant, or {FIX_BATCH} if it is computed from the input's shape"
            raise UnsupportedNodeError(f"its input '{what}' is computed at run time", advice)
        return tensor.array

    def fixed(self, index: int, what: str) -> NDArray[Any]:
        """As ``known``, and free of the batch."""
        array = self.known(index, what)
        if array.dtype == object:
            raise UnsupportedNodeError(f"its input '{what}' depends on the batch", FIX_BATCH)
        return array

    def int_list(self, index: int, what: str) -> list[int]:
        """A known integer vector as Python integers."""
        array = self.fixed(index, what)
        if array.dtype.kind not in "iu" and array.size:
            raise self.error(f"{what} must hold integers, not {array.dtype}")
        return [int(e) for e in array.reshape(-1)]

    def dim_list(self, index: int, what: str) -> list[int | Dim]:
        """As ``int_list``, but elements may depend on the batch."""
        array = self.known(index, what)
        if array.dtype == object:
            return [e if isinstance(e, Dim) else int(e) for e in array.reshape(-1)]
        return list(self.int_list(index, what))

    def scalar(self, index: int, what: str, default: float) -> float:
        """A known one-element input, or ``default`` where it is absent."""
        if not self.has(index):
            return default
        array = self.fixed(index, what)
        if array.size != 1:
            raise self.error(f"{what} must be one number, has shape {list(array.shape)}")
        return float(array.reshape(())[()])

    def has_attr(self, name: str) -> bool:
        return name in self._attributes

    def attr_int(self, name: str, default: int | None = None) -> int:
        value: int = self._attr(name, "i", default)
        return value

    def attr_float(self, name: str, default: float | None = None) -> float:
        value: float = self._attr(name, "f", default)
        return value

    def attr_str(self, name: str, default: str) -> str:
        value: bytes = self._attr(name, "s", default.encode())
        return value.decode("utf-8", "replace")

    def attr_ints(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        return list(self._attr(name, "ints", default))

    def attr_floats(self, name: str, default: Sequence[float] | None = None) -> list[float]:
        return list(self._attr(name, "floats", default))

    def attr_tensor(self, name: str) -> NDArray[Any]:
        return self._reader.read(self._attr(name, "t", None))

    def attr_dtype(self, name: str, default: int | None = None) -> np.dtype[Any]:
        """An attribute that holds an ONNX element type, as numpy's."""
        try:
            return numpy_type(self.attr_int(name, default))
        except ModelError as e:
            raise UnsupportedNodeError(str(e), "use float32") from None

    def _attr(self, name: str, field: str, default: Any) -> Any:
        attribute = self._attributes.get(name)
        if attribute is None:
            if default is None:
                raise self.error(f"attribute '{name}' is missing")
            return default
        if _KINDS.get(attribute.type) != field or attribute.ref_attr_name:
            raise self.error(f"attribute '{name}' must be {_WORDS[field]}")
        return getattr(attribute, field)


def label(proto: NodeProto) -> str:
    """How messages name a node: ``Conv 'stem/conv'``, or by its first output where it has no name."""
    if proto.name:
        return f"{proto.op_type} '{proto.name}'"
    return f"{proto.op_type} giving '{next(iter(proto.output), '')}'"
