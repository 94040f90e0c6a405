"""Building graphs one operation at a time; result types are inferred, never spelled by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import QccError, VerifyError
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, constant, fresh_name, live, op
from qcc.ir.opset import OPSET
from qcc.ir.types import Quant, TensorType
from qcc.ir.verify import verify


class GraphBuilder:
    """Collects inputs and operations, then yields a verified graph.

    Every name that is asked for is made unique by a numeric suffix where it is taken already, so
    read the name that a value got from the value.
    """

    def __init__(self, name: str, stage: Stage = Stage.FLOAT) -> None:
        self.name = name
        self.stage = stage
        self._inputs: list[Value] = []
        self._ops: list[Op] = []
        self._by_name: dict[str, Op | None] = {}

    def input(self, name: str, shape: Sequence[int], dtype: str = "f32", quant: Quant | None = None) -> Value:
        """A graph input; ``BATCH`` may stand at axis 0 of ``shape``."""
        value = Value(self.fresh(name), TensorType(tuple(shape), dtype, quant))
        self._by_name[value.name] = None
        self._inputs.append(value)
        return value

    def constant(self, array: NDArray[Any], name: str = "const", quant: Quant | None = None) -> Value:
        """A constant that holds a copy of ``array``. Raises VerifyError on an illegal element type."""
        return self._append(constant(self.fresh(name), np.asarray(array), quant=quant))

    def op(
        self,
        kind: str,
        operands: Sequence[Value],
        *,
        name: str | None = None,
        dtype: str | None = None,
        quant: Quant | None = None,
        **attrs: Attr,
    ) -> Value:
        """Append an operation and return its result.

        ``name`` defaults to the kind. ``dtype`` defaults to the only type that the operation may
        yield, else to that of ``quant`` (stage INTEGER), else to that of the first operand.
        Raises VerifyError when operands or attributes do not fit.
        """
        return self._append(infer(self.stage, kind, operands, self.fresh(name or kind), attrs, dtype, quant))

    def append(self, o: Op) -> Value:
        """Append an operation as it is and return its result, whose name must be free. Raises VerifyError."""
        for v in o.results:
            if v.name in self._by_name:
                raise VerifyError(f"{o}: %{v.name} is defined twice")
        return self._append(o)

    def fresh(self, stem: str) -> str:
        """``stem`` if no value has that name yet, else a numbered variant of it."""
        return fresh_name(stem, self._by_name)

    def taken(self, name: str) -> bool:
        """Whether a value has this name."""
        return name in self._by_name

    def producer(self, value: Value) -> Op | None:
        """The operation that defines ``value``; None for a graph input."""
        return self._by_name[value.name]

    def graph(self, outputs: Sequence[Value], *, prune: bool = False) -> Graph:
        """The verified graph with these outputs; ``prune`` drops operations they do not need."""
        ops = live(self._ops, outputs) if prune else tuple(self._ops)
        graph = Graph(self.name, self.stage, tuple(self._inputs), ops, tuple(outputs))
        verify(graph)
        return graph

    def _append(self, o: Op) -> Value:
        self._ops.append(o)
        self._by_name |= dict.fromkeys((v.name for v in o.results), o)
        return o.result


def infer(
    stage: Stage,
    kind: str,
    operands: Sequence[Value],
    name: str,
    attrs: Mapping[str, Attr],
    dtype: str | None = None,
    quant: Quant | None = None,
) -> Op:
    """An operation whose one result, called ``name``, has the inferred type. Raises VerifyError."""
    spec = OPSET.get(kind)
    if spec is None:
        raise VerifyError(f"unknown operation '{kind}'")
    draft = op(kind, operands, (Value(name, TensorType((), "f32")),), **attrs)
    try:
        shape = spec.shape(draft)
    except VerifyError:
        raise
    except (QccError, IndexError, ValueError, TypeError, KeyError) as e:
        raise VerifyError(f"{draft}: malformed: {e}") from e
    if dtype is None:
        dtype = _element(stage, spec.results, quant, draft)
    return op(kind, operands, (Value(name, TensorType(shape, dtype, quant)),), **attrs)


def _element(stage: Stage, allowed: frozenset[str] | None, quant: Quant | None, o: Op) -> str:
    if allowed is not None and len(allowed) == 1:
        return next(iter(allowed))
    if stage is Stage.INTEGER and quant is not None:
        return quant.dtype
    if stage is Stage.INTEGER and allowed is not None:
        raise VerifyError(f"{o}: several element types are possible: give dtype or quant")
    return o.operands[0].type.dtype
