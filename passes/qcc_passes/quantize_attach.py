"""Writing grids into a graph's types, once they are chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir.graph import Graph, Op, Stage, Value, constant, constants, fresh_name, op
from qcc.ir.opset import OPSET
from qcc.ir.types import Quant
from qcc_passes.quantize_grids import MOVES

WEIGHTED: Final = frozenset({"conv2d", "dense"})

WeightGrid = Callable[[str, NDArray[Any]], Quant]
"""The grid of a layer's weights, from the layer's name (that of its result) and the weights."""


def check_ops(graph: Graph) -> None:
    """Raise PassError naming the first operation that has no integer form."""
    arrays = constants(graph)
    for o in graph.ops:
        spec = OPSET.get(o.kind)
        if spec is None or Stage.QUANTIZED not in spec.stages:
            raise PassError(f"{o}: '{o.kind}' cannot be quantized; canonicalize and fold-batch-norm rewrite it first")
        if o.kind in WEIGHTED and (moving := [v.name for v in o.operands[1:3] if v.name not in arrays]):
            raise PassError(f"{o}: weights and bias must be constants, %{moving[0]} is not; write it as a matmul")
        if o.kind == "map" and (moving := [v.name for v in o.operands[1:] if v.name not in arrays]):
            raise PassError(f"{o}: a table needs constant parameters, %{moving[0]} is not one")
        if o.kind != "constant" and all(v.name in arrays for v in o.operands):
            raise PassError(f"{o}: all its operands are constants; canonicalize folds it first")
        if whole := [v.name for v in o.operands if v.type.dtype != "f32"]:
            raise PassError(f"{o}: computes on indices (%{whole[0]}), which are not quantized; cut the model before it")
    if still := [v.name for v in graph.outputs if v.name in arrays]:
        raise PassError(f"the output %{still[0]} is a constant; cut it from the model")


def free_concats(graph: Graph, fixed: Mapping[str, Quant]) -> tuple[Graph, dict[str, str]]:
    """``graph`` with a rescaling before every concat operand whose grid is ``fixed`` and not the other operands'.

    Also returns, for each rescaled value, the name of the value that it equals.
    """
    pinned = dict(fixed)
    taken = {v.name for o in graph.ops for v in o.results} | {v.name for v in graph.inputs}
    ops: list[Op] = []
    origin: dict[str, str] = {}
    for o in graph.ops:
        given = {pinned.get(v.name) for v in o.operands}
        if o.kind in MOVES and len(given) == 1 and (grid := given.pop()) is not None:
            pinned[o.result.name] = grid
        elif o.kind == "concat" and len(given) > 1:
            for v in o.operands:
                if v.name in pinned and v.name not in origin.values():
                    name = fresh_name(f"{v.name}.rescaled", taken)
                    taken.add(name)
                    origin[name] = v.name
                    ops.append(op("clip", [v], [replace(v, name=name)]))
            rescaled = {old: new for new, old in origin.items()}
            operands = [replace(v, name=rescaled.get(v.name, v.name)) for v in o.operands]
            o = replace(o, operands=tuple(operands))
        ops.append(o)
    return replace(graph, ops=tuple(ops)), origin


def attach(graph: Graph, grids: Mapping[str, Quant], weight_grid: WeightGrid) -> Graph:
    """``graph`` at stage QUANTIZED: activations on ``grids`` (by value name), weights on ``weight_grid`` of theirs.

    A constant that plays several roles is copied for each.
    """
    return _Attacher(graph, grids, weight_grid).run()


class _Attacher:
    def __init__(self, graph: Graph, grids: Mapping[str, Quant], weight_grid: WeightGrid) -> None:
        self._graph = graph
        self._grids = grids
        self._weight_grid = weight_grid
        self._arrays = constants(graph)
        self._env = {v.name: v.typed(quant=grids.get(v.name)) for v in graph.inputs}
        self._taken = {v.name for o in graph.ops for v in o.results} | set(self._env)
        self._roles: dict[str, dict[Quant | None, Value]] = {}
        self._ops: list[Op] = []

    def run(self) -> Graph:
        for o in self._graph.ops:
            if o.kind != "constant":
                operands = [self._operand(o, slot) for slot in range(len(o.operands))]
                self._env[o.result.name] = result = o.result.typed(quant=self._grids.get(o.result.name))
                self._ops.append(op(o.kind, operands, [result], **o.attrs))
        inputs, outputs = (
            tuple(self._env[v.name] for v in values) for values in (self._graph.inputs, self._graph.outputs)
        )
        return Graph(self._graph.name, Stage.QUANTIZED, inputs, tuple(self._ops), outputs)

    def _operand(self, o: Op, slot: int) -> Value:
        name = o.operands[slot].name
        if name not in self._arrays:
            return self._env[name]
        roles = self._roles.setdefault(name, {})
        quant = self._constant_grid(o, slot)
        if quant not in roles:
            copy = fresh_name(name, self._taken) if roles else name
            self._taken.add(copy)
            made = constant(copy, self._arrays[name], quant=quant)
            self._ops.append(made)
            roles[quant] = made.result
        return roles[quant]

    def _constant_grid(self, o: Op, slot: int) -> Quant | None:
        """Codes for what a product or a move reads; real parameters, such as biases, go into tables and offsets."""
        name = o.operands[slot].name
        if o.kind in MOVES:
            return self._grids[o.result.name]
        if o.kind in WEIGHTED and slot == 1:
            return self._weight_grid(o.result.name, self._arrays[name])
        if o.kind == "matmul" or (o.kind in WEIGHTED and slot == 3):
            return self._tensor_grid(o, name)
        return None

    def _tensor_grid(self, o: Op, name: str) -> Quant:
        """One signed scale for a constant that takes the place of an activation."""
        weights = self._arrays[name]
        per_channel = self._weight_grid(o.result.name, weights.reshape(1, -1))
        return replace(per_channel, axis=None)
