"""The layers of a graph: the operations whose weights and arithmetic bit assignment is about."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcc.ir.graph import Graph, Op, constant, constants, fresh_name, producers, rewrite

LAYER_KINDS = ("conv2d", "dense")


@dataclass(frozen=True, slots=True)
class Layer:
    """A conv2d or dense operation with constant weights, named after its result.

    ``macs`` are multiply-accumulates per sample, ``parameters`` the weights (without the bias).
    """

    name: str
    kind: str
    weight: str
    parameters: int
    macs: int


def layers(graph: Graph) -> tuple[Layer, ...]:
    """The layers in order of execution (an analysis)."""
    made_by = producers(graph)
    found = []
    for o in graph.ops:
        if o.kind not in LAYER_KINDS or made_by[o.operands[1].name].kind != "constant":
            continue
        weight = o.operands[1]
        outputs = math.prod(o.result.type.shape[1:])
        macs = outputs * math.prod(weight.type.shape[1:])
        found.append(Layer(o.result.name, o.kind, weight.name, math.prod(weight.type.shape), macs))
    return tuple(found)


def groups_of(o: Op) -> int:
    """How many groups of channels a layer keeps apart."""
    return o.int_attr("groups") if o.kind == "conv2d" else 1


def own_biases(graph: Graph) -> Graph:
    """``graph`` in which no two layers share a bias."""
    taken = {v.name for o in graph.ops for v in o.results} | {v.name for v in graph.inputs}
    arrays = constants(graph)
    seen: set[str] = set()

    def copied(o: Op) -> list[Op] | None:
        if o.kind not in LAYER_KINDS or o.operands[2].name not in arrays or o.operands[2].name not in seen:
            seen.update(v.name for v in o.operands)
            return None
        name = fresh_name(f"{o.result.name}.bias", taken)
        taken.add(name)
        bias = constant(name, arrays[o.operands[2].name])
        return [bias, Op(o.kind, (*o.operands[:2], bias.result, *o.operands[3:]), o.results, o.attrs)]

    return rewrite(graph, copied)
