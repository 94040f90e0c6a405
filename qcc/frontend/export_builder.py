"""Accumulates the nodes and initializers of an ONNX graph under construction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from qcc.errors import UnsupportedError
from qcc.ir.bounds import certificates
from qcc.ir.graph import Graph, Op, Stage, Value, constants, fresh_name
from qcc.ir.types import BATCH, TensorType

Array = NDArray[Any]

OPSET: Final = 21
IR_VERSION: Final = 10
"""What onnxruntime of 2024 and later loads; the onnx package would stamp its own, newer ones."""


class Builder:
    """Names are deterministic and never collide with those of the graph's values.

    Inside an INTEGER graph, 16-bit values travel as int32: onnxruntime has few 16-bit kernels.
    """

    def __init__(self, graph: Graph) -> None:
        self.stage = graph.stage
        self.nodes: list[onnx.NodeProto] = []
        self.constants = constants(graph)
        self._reach = {name: c.reach for name, c in certificates(graph).items()} if graph.stage is Stage.INTEGER else {}
        self._pads = {
            o.result.name: o.ints_attr("pads") for o in graph.ops if o.kind == "pad" and o.result.type.rank == 4
        }
        self._taken = {v.name for v in graph.inputs} | {o.result.name for o in graph.ops}
        self._initializers: dict[str, Array] = {}
        self._pooled: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._tensors: dict[str, str] = {}
        self._bound: set[str] = set()

    def fresh(self, stem: str) -> str:
        name = fresh_name(stem, self._taken)
        self._taken.add(name)
        return name

    def node(self, kind: str, inputs: Sequence[str], stem: str, **attrs: Any) -> str:
        """Append a node; returns the name of its output, which begins with ``stem``."""
        output = self.fresh(stem)
        node = helper.make_node(kind, list(inputs), [output], name=output, **dict(sorted(attrs.items())))
        self.nodes.append(node)
        return output

    def const(self, array: Array, stem: str) -> str:
        """An initializer that holds ``array``; equal arrays share one."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._pooled:
            self._pooled[key] = self.initializer(self.fresh(stem), array)
        return self._pooled[key]

    def initializer(self, name: str, array: Array) -> str:
        self._initializers[name] = array
        return name

    def scalar(self, value: float, dtype: Any, stem: str) -> str:
        return self.const(np.array(value, dtype), stem)

    def ints(self, values: Iterable[int], stem: str) -> str:
        """An int64 vector, as shapes, axes and pads are given."""
        return self.const(np.array(list(values), np.int64), stem)

    def bind(self, value: Value, tensor: str) -> None:
        """From now on ``tensor`` stands for ``value``."""
        self._tensors[value.name] = tensor
        self._bound.add(tensor)

    def tensor(self, value: Value) -> str:
        return self._tensors[value.name]

    def array(self, o: Op, slot: int) -> Array:
        """The array of a constant operand. Raises UnsupportedError when it is computed."""
        value = o.operands[slot]
        if value.name not in self.constants:
            raise UnsupportedError((f"{o}: ONNX needs %{value.name} to be a constant; it is computed",))
        return self.constants[value.name]

    def padding(self, value: Value) -> tuple[int, int, int, int]:
        """By how much a ``pad`` extends the maps of ``value``: top, left, bottom, right; zeros for what none made."""
        pads = self._pads.get(value.name, (0,) * 8)
        return pads[2], pads[3], pads[6], pads[7]

    def reach(self, o: Op) -> int:
        """The magnitude that no partial sum of an integer epilogue exceeds."""
        return self._reach[o.result.name]

    def cast(self, tensor: str, dtype: Any, stem: str) -> str:
        return self.node("Cast", [tensor], stem, to=int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))

    def carrier(self, type_: TensorType) -> np.dtype[Any]:
        """The element type that stands for ``type_`` inside the exported graph."""
        wide = self.stage is Stage.INTEGER and type_.dtype in ("u16", "i16")
        return np.dtype(np.int32) if wide else type_.numpy

    def rename(self, tensor: str, name: str) -> None:
        """Give the output of the latest node the name ``name``; a tensor that is a value's goes through Identity."""
        last = self.nodes[-1] if self.nodes else None
        if last is not None and list(last.output) == [tensor] and tensor not in self._bound:
            last.output[0] = name
            last.name = name
        else:
            self.nodes.append(helper.make_node("Identity", [tensor], [name], name=name))

    def model(self, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> onnx.ModelProto:
        """The model; initializers that nothing reads are left out."""
        used = {i for n in self.nodes for i in n.input} | {v.name for v in outputs}
        stored = [numpy_helper.from_array(a, n) for n, a in self._initializers.items() if n in used]
        graph = helper.make_graph(
            self.nodes, name, [_info(v) for v in inputs], [_info(v) for v in outputs], initializer=stored
        )
        stamp = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[stamp], ir_version=IR_VERSION, producer_name="qcc")


def _info(value: Value) -> onnx.ValueInfoProto:
    dims = ["N" if d == BATCH else d for d in value.type.shape]
    return helper.make_tensor_value_info(value.name, helper.np_dtype_to_tensor_dtype(value.type.numpy), dims)
