"""Which nodes the outputs need, in an order that defines before it uses."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from onnx import GraphProto, NodeProto

from qcc.errors import ModelError
from qcc.frontend.node import label


def needed_nodes(graph: GraphProto, given: Iterable[str]) -> list[NodeProto]:
    """The nodes that the graph's outputs depend on, sorted topologically, else in file order.

    ``given`` are the names of inputs and initializers. Raises ModelError when a value is defined
    twice or nowhere, or when nodes form a cycle.
    """
    nodes = list(graph.node)
    makers = _makers(nodes, frozenset(given))
    needed = _reachable(nodes, makers, [o.name for o in graph.output])
    readers: dict[int, list[int]] = {i: [] for i in needed}
    waiting: dict[int, int] = {}
    for i in needed:
        sources = {makers[name] for name in nodes[i].input if name} - {None}
        waiting[i] = len(sources)
        for source in sources:
            if source is not None:
                readers[source].append(i)
    ready = [i for i in sorted(needed) if not waiting[i]]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(needed):
        raise ModelError(f"the graph is cyclic: {_cycle(nodes, makers, {i for i in needed if waiting[i]})}")
    return [nodes[i] for i in order]


def _makers(nodes: Sequence[NodeProto], given: frozenset[str]) -> dict[str, int | None]:
    """The node that defines each name; None for what is given."""
    makers: dict[str, int | None] = dict.fromkeys(given)
    for i, node in enumerate(nodes):
        for name in node.output:
            if name and name in makers:
                raise ModelError(f"{label(node)}: its output '{name}' is defined twice")
            if name:
                makers[name] = i
    return makers


def _reachable(nodes: Sequence[NodeProto], makers: dict[str, int | None], outputs: Sequence[str]) -> set[int]:
    for name in outputs:
        if name not in makers:
            raise ModelError(f"graph output '{name}' is defined nowhere")
    stack = [i for name in outputs if (i := makers[name]) is not None]
    seen: set[int] = set()
    while stack:
        i = stack.pop()
        if i in seen:
            continue
        seen.add(i)
        for name in nodes[i].input:
            if not name:
                continue
            if name not in makers:
                raise ModelError(f"{label(nodes[i])}: its input '{name}' is defined nowhere")
            if (source := makers[name]) is not None:
                stack.append(source)
    return seen


def _cycle(nodes: Sequence[NodeProto], makers: dict[str, int | None], stuck: set[int]) -> str:
    """One cycle among the nodes that never became ready: each of them reads from another."""
    path: list[int] = []
    at = min(stuck)
    while at not in path:
        path.append(at)
        at = next(source for n in nodes[at].input if n and (source := makers[n]) in stuck and source is not None)
    names = [label(nodes[i]) for i in path[path.index(at) :]]
    shown = [*names[:8], "…"] if len(names) > 8 else names
    return " reads ".join([*shown, names[0]])
