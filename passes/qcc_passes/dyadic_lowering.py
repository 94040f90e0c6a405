"""What the rules of the dyadic rewriting share: grids and constants to read, and the INTEGER graph to write."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, constant, constants, fresh_name, op
from qcc.ir.types import Quant
from qcc_passes.dyadic_scale import Requant


class Lowering:
    """Reads a QUANTIZED graph and collects the INTEGER graph that replaces it, one rule call per operation."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._arrays = constants(graph)
        self._taken = {v.name for o in graph.ops for v in o.results} | {v.name for v in graph.inputs}
        self._env = {v.name: _integer(v, "input") for v in graph.inputs}
        self._ops: list[Op] = []

    def array(self, v: Value) -> NDArray[Any] | None:
        """The reals of a constant; None for anything else."""
        return self._arrays.get(v.name)

    def read(self, v: Value) -> Value:
        """The value of codes that stands for ``v``; the codes of a constant are emitted on first use."""
        if v.name not in self._env:
            quant = grid(v, f"constant %{v.name}")
            made = constant(v.name, quant.quantize(self._arrays[v.name]), quant=quant)
            self._ops.append(made)
            self._env[v.name] = made.result
        return self._env[v.name]

    def give(self, o: Op, what: str, array: NDArray[Any]) -> Value:
        """A new constant of ``o``: its multipliers, offsets or table."""
        name = fresh_name(f"{o.result.name}.{what}", self._taken)
        self._taken.add(name)
        made = constant(name, array)
        self._ops.append(made)
        return made.result

    def emit(self, kind: str, operands: Sequence[Value], o: Op, **attrs: Attr) -> None:
        """Append an operation that yields the codes of the result of ``o``."""
        result = _integer(o.result, str(o))
        self._env[result.name] = result
        self._ops.append(op(kind, operands, [result], **attrs))

    def move(self, o: Op, **attrs: Attr) -> None:
        """Append ``o`` as it is but for ``attrs``: it moves codes."""
        self.emit(o.kind, [self.read(v) for v in o.operands], o, **{**o.attrs, **attrs})

    def graph(self) -> Graph:
        inputs = tuple(self._env[v.name] for v in self._graph.inputs)
        outputs = tuple(self._env[v.name] for v in self._graph.outputs)
        return Graph(self._graph.name, Stage.INTEGER, inputs, tuple(self._ops), outputs)


LoweringRule = Callable[[Lowering, Op], None]


def grid(v: Value, where: object) -> Quant:
    """The grid of ``v``. Raises PassError when it has none."""
    if v.type.quant is None:
        raise PassError(f"{where}: %{v.name} has no grid; run quantize first")
    return v.type.quant


def requant(o: Op, ratios: Sequence[Fraction]) -> Requant:
    """The end of ``o``, whose terms have units of ``ratios`` steps of its result; its clamp is taken along."""
    target = grid(o.result, o)
    return Requant.of(str(o), target, ratios, o.float_attr("lo", -math.inf), o.float_attr("hi", math.inf))


def _integer(v: Value, where: str) -> Value:
    """``v`` as codes; indices (i64) stay."""
    return v if v.type.dtype == "i64" else v.typed(dtype=grid(v, where).dtype)
