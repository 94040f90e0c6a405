"""The import itself: node after node, known tensors folded, the others converted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from qcc.errors import ModelError, UnsupportedError, VerifyError
from qcc.frontend.convert import CONVERTERS
from qcc.frontend.convert.unsupported import foreign_domain, no_counterpart, only_constant
from qcc.frontend.emit import Emitter, check_pads
from qcc.frontend.fold import FOLDERS, fold
from qcc.frontend.inputs import Input, bind_inputs
from qcc.frontend.limits import Budget
from qcc.frontend.naming import legal, renamed
from qcc.frontend.node import Known, Node, Tensor, UnsupportedNodeError, label
from qcc.frontend.order import needed_nodes
from qcc.frontend.schema import check_form
from qcc.frontend.source import DEFAULT_DOMAINS, Source
from qcc.frontend.tensors import TensorReader
from qcc.ir.graph import Graph, Value
from qcc.ir.types import BATCH
from qcc.ir.verify import verify

_MALFORMED: Final = (VerifyError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
"""What a malformed node makes shape inference, numpy or a converter raise."""


class Importer:
    """One import. ``notes`` say what it changed or assumed."""

    def __init__(self, source: Source, reader: TensorReader) -> None:
        self.notes: list[str] = []
        self._proto: GraphProto = source.proto.graph
        self._opset = source.opset
        self._reader = reader
        self._budget = Budget()
        self._budget.grant(source.size)
        self._emitter = Emitter("model", self._budget)
        self._stored = _initializers(self._proto)
        self._values: dict[str, Tensor | None] = {}
        self._names: dict[str, str] = {}
        self._read: set[str] = set()
        self._reasons: list[str] = []

    def run(self, name: str, batch: int | None, shapes: Mapping[str, Sequence[int]]) -> Graph:
        """The verified graph, called ``name``. Raises ModelError or UnsupportedError."""
        infos = [i for i in self._proto.input if i.name not in self._stored]
        if len({i.name for i in infos}) != len(infos):
            raise ModelError("two graph inputs share one name")
        nodes = needed_nodes(self._proto, [*(i.name for i in infos), *self._stored])
        inputs, notes = bind_inputs(infos, batch, shapes)
        self.notes += notes
        for entry in inputs:
            value = self._emitter.input(legal(entry.name), entry.shape, entry.dtype, entry.mark)
            self._bind(entry.name, value)
        self._read = {name for node in nodes for name in node.input} | {o.name for o in self._proto.output}
        for node in nodes:
            self._node(node)
        if self._reasons:
            raise UnsupportedError(tuple(self._reasons))
        return self._finish(legal(name), inputs)

    def _node(self, proto: NodeProto) -> None:
        self._emitter.stem = legal(next((name for name in proto.output if name), proto.op_type))
        try:
            if proto.domain not in DEFAULT_DOMAINS:
                raise foreign_domain(proto.domain)
            with np.errstate(all="ignore"):  # what overflows becomes Inf, which no constant may hold
                results = self._results(proto)
        except UnsupportedNodeError as e:
            self._reject(proto, e)
            return
        except ModelError as e:
            raise e if str(e).startswith(label(proto)) else ModelError(f"{label(proto)}: {e}") from None
        except _MALFORMED as e:
            detail = str(e).split(": ", 1)[-1] if isinstance(e, VerifyError) else f"malformed: {e}"
            raise ModelError(f"{label(proto)}: {detail}") from e
        for name, result in zip(proto.output, results, strict=False):
            if name:
                self._bind(name, result)

    def _results(self, proto: NodeProto) -> Sequence[Tensor | None]:
        """The node's outputs; None where they depend on a node that was rejected."""
        if proto.op_type not in FOLDERS and proto.op_type not in CONVERTERS:
            raise no_counterpart(proto.op_type)
        check_form(proto, self._opset)
        names = list(proto.input)
        inputs = tuple(self._tensor(name) if name else None for name in names)
        if any(name and tensor is None for name, tensor in zip(names, inputs, strict=True)):
            return [None] * len(proto.output)
        results = self._converted(Node(proto, self._opset, inputs, self._reader), proto)
        for name in proto.output[len(results) :]:
            if name in self._read:
                raise UnsupportedNodeError(f"its output '{name}' is read", "only the first output can be used")
        return results

    def _converted(self, node: Node, proto: NodeProto) -> Sequence[Tensor]:
        if node.op in FOLDERS and all(t is None or isinstance(t, Known) for t in node.inputs):
            stems = [legal(name) for name in proto.output]
            return [Known(a, n) for a, n in zip(fold(node, self._budget), stems, strict=False)]
        if node.op not in CONVERTERS:
            raise only_constant(node.op)
        made = CONVERTERS[node.op](node, self._emitter)
        return [made] if isinstance(made, (Known, Value)) else list(made)

    def _reject(self, proto: NodeProto, why: UnsupportedNodeError) -> None:
        """Record the node; stand in for its outputs where the model declares them, to go on checking."""
        self._reasons.append(f"{label(proto)}: {why}")
        infos = {i.name: i for i in self._proto.value_info}
        for name in filter(None, proto.output):
            self._values[name] = _stand_in(infos.get(name), self._emitter)

    def _tensor(self, name: str) -> Tensor | None:
        if name not in self._values:
            array = self._reader.read(self._stored[name])
            self._budget.grant(array.nbytes)
            self._values[name] = Known(array, legal(name))
        return self._values[name]

    def _bind(self, name: str, tensor: Tensor | None) -> None:
        self._values[name] = tensor
        if isinstance(tensor, Value):
            self._names.setdefault(tensor.name, legal(name))

    def _finish(self, name: str, inputs: Sequence[Input]) -> Graph:
        outputs: dict[str, Value] = {}
        for info in self._proto.output:
            if info.name in outputs:
                raise ModelError(f"two graph outputs are called '{info.name}'")
            outputs[info.name] = self._output(info.name, {v.name for v in outputs.values()})
        converted = ", ".join(f"{n} {word}" for word, n in sorted(self._reader.converted.items()))
        if converted:
            self.notes.append(f"tensors converted to float32: {converted}")
        graph = replace(self._emitter.finish(list(outputs.values())), name=name)
        check_pads(graph)
        exact = [legal(n) for n in (*(i.name for i in inputs), *outputs)]
        graph = renamed(graph, self._names, exact)
        verify(graph)
        return graph

    def _widened(self, name: str, tensor: Tensor) -> Tensor:
        """A constant output of any integer type as int64."""
        if isinstance(tensor, Value) or tensor.array.dtype.kind not in "iub" or tensor.array.dtype == np.int64:
            return tensor
        self.notes.append(f"output '{name}' is {tensor.array.dtype} in the model and int64 here")
        return Known(tensor.array.astype(np.int64), tensor.name)

    def _output(self, name: str, taken: Set[str]) -> Value:
        """The value of a graph output, which bears the output's name: by a copy, if it has another."""
        try:
            tensor = self._tensor(name)
            if tensor is None:
                raise ModelError(f"graph output '{name}' depends on unsupported nodes")
            value = self._emitter.value(self._widened(name, tensor))
        except UnsupportedNodeError as e:
            raise ModelError(f"graph output '{name}': {e}") from None
        named = self._names.get(value.name) == legal(name)
        if value.name in taken or (self._emitter.is_input(value) and not named):
            value = self._emitter.op("reshape", value, shape=value.type.shape)
        if (mark := self._emitter.mark(value)) and value.type.dtype != "i64":
            self.notes.append(f"output '{name}' is {mark} in the model and {value.type.dtype} here")
        self._names[value.name] = legal(name)
        return value


def _initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Stored tensors by name. Raises ModelError on sparse or ambiguous ones."""
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelError(f"initializer '{name}' is sparse; store it as a dense tensor")
    stored = {t.name: t for t in graph.initializer}
    if len(stored) != len(graph.initializer):
        raise ModelError("two initializers share one name")
    return stored


def _stand_in(info: ValueInfoProto | None, emitter: Emitter) -> Value | None:
    """A value of the declared type, so that nodes behind a rejected one are checked as well."""
    if info is None or info.type.tensor_type.elem_type != TensorProto.FLOAT:
        return None
    dims = info.type.tensor_type.shape.dim
    shape = [d.dim_value if d.dim_value > 0 else BATCH for d in dims]
    if not shape or BATCH in shape[1:]:
        return None
    return emitter.input("unsupported", shape, "f32", None)
