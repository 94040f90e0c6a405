"""Ordering and running passes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networkx as nx

from qcc.errors import ConfigError, PluginError, QccError
from qcc.ir.graph import Graph
from qcc.ir.verify import verify
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext

Observer = Callable[[Pass, Graph, Graph], None]


def fact_order(passes: Sequence[Pass]) -> "nx.DiGraph[int]":
    """Edges run from the pass that gives a fact to each pass that needs it."""
    order: nx.DiGraph[int] = nx.DiGraph()
    order.add_nodes_from(range(len(passes)))
    for i, giver in enumerate(passes):
        for j, taker in enumerate(passes):
            if i != j and set(giver.gives) & set(taker.needs):
                order.add_edge(i, j)
    return order


def check_order(passes: Sequence[Pass], given: frozenset[type] = frozenset()) -> None:
    """The user's order is law: reject a bad one, never rearrange it.

    ``given`` are the facts that exist before the first pass. Raises ConfigError.
    """
    have = set(given)
    for before, p in zip((None, *passes), passes, strict=False):
        if before is not None and before.yields is not p.accepts:
            raise ConfigError(f"{p} takes a graph at stage {p.accepts}, but {before} yields stage {before.yields}")
        for fact in p.needs:
            if fact not in have:
                givers = [str(g) for g in passes if fact in g.gives]
                hint = f"; move {givers[0]} before it" if givers else ""
                raise ConfigError(f"{p} needs {fact.__name__}, which nothing before it gives{hint}")
        have |= set(p.gives)


def auto_order(passes: Sequence[Pass]) -> list[Pass]:
    """For ``pipeline: auto`` only: a deterministic order that respects the facts."""
    order = fact_order(passes)
    try:
        return [passes[i] for i in nx.lexicographical_topological_sort(order)]
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(str(passes[i]) for i, _ in nx.find_cycle(order))
        raise ConfigError(f"passes need each other in a circle: {cycle}") from None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Passes in the order in which they run; the graph is verified after each."""

    passes: tuple[Pass, ...]
    observe: Observer | None = None

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph after the last pass.

        Raises ConfigError when the order cannot work, and whatever a pass raises, with a note
        that says where. An exception that is no QccError becomes a PluginError.
        """
        check_order(self.passes, ctx.facts.kinds())
        if self.passes and self.passes[0].accepts is not graph.stage:
            first = self.passes[0]
            raise ConfigError(f"{first} takes a graph at stage {first.accepts}; this one is at stage {graph.stage}")
        for i, p in enumerate(self.passes):
            before = graph
            try:
                graph = self._step(p, graph, ctx)
            except QccError as e:
                e.add_note(f"in pass {i + 1}/{len(self.passes)}: {p}")
                raise
            if self.observe:
                self.observe(p, before, graph)
        return graph

    @staticmethod
    def _step(p: Pass, graph: Graph, ctx: PassContext) -> Graph:
        try:
            after = p.run(graph, ctx)
        except (QccError, MemoryError):
            raise
        except Exception as e:
            raise PluginError(f"pass '{p.name}' raised {type(e).__name__}: {e}") from e
        if not isinstance(after, Graph):
            raise PluginError(f"pass '{p.name}' returned {type(after).__name__}, not a graph")
        verify(after)
        if after.stage is not p.yields:
            raise PluginError(f"pass '{p.name}' yields stage {p.yields}, but its graph is at stage {after.stage}")
        return after
