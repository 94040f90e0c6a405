"""What a pass may see besides the graph: facts, analyses, randomness, progress. No globals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np

from qcc.errors import PassError
from qcc.ir.graph import Graph
from qcc.passmgr.target import Capabilities

T = TypeVar("T")

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` by long steps; ``done == total`` ends one."""


def _silent(what: str, done: int, total: int) -> None:
    """The default progress: nobody is watching."""


class Analyses:
    """Facts derivable from the graph alone, computed once per graph.

    Graphs are immutable, so an entry cannot go stale: a rewritten graph is a new key.
    """

    def __init__(self) -> None:
        self._cache: WeakKeyDictionary[Graph, dict[Callable[..., Any], Any]] = WeakKeyDictionary()

    def __call__(self, analysis: Callable[[Graph], T], graph: Graph) -> T:
        known = self._cache.setdefault(graph, {})
        if analysis not in known:
            known[analysis] = analysis(graph)
        result: T = known[analysis]
        return result


@runtime_checkable
class Reported(Protocol):
    """A fact that belongs into reports."""

    def report(self) -> dict[str, Any]:
        """Plain data: what JSON holds."""
        ...


class Facts:
    """Facts measured on data (ranges, sensitivities), keyed by their own type."""

    def __init__(self) -> None:
        self._by_type: dict[type, Any] = {}

    def put(self, fact: object) -> None:
        self._by_type[type(fact)] = fact

    def get(self, kind: type[T]) -> T:
        try:
            fact: T = self._by_type[kind]
        except KeyError:
            raise PassError(f"no {kind.__name__} has been given or measured") from None
        return fact

    def find(self, kind: type[T]) -> T | None:
        return self._by_type.get(kind)

    def reports(self) -> dict[str, Any]:
        """What facts have to say in a report, by the names of their types."""
        return {kind.__name__: fact.report() for kind, fact in self._by_type.items() if isinstance(fact, Reported)}

    def kinds(self) -> frozenset[type]:
        return frozenset(self._by_type)


@dataclass(slots=True)
class PassContext:
    """``capabilities`` are the target's; ``cache`` is a folder for results keyed by content hash.

    ``threads`` may work at once; how many there are must never change a result.
    """

    seed: int = 0
    threads: int = 2
    capabilities: Capabilities = field(default_factory=Capabilities)
    facts: Facts = field(default_factory=Facts)
    analyses: Analyses = field(default_factory=Analyses)
    progress: Progress = _silent
    cache: Path | None = None
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("qcc"))

    def rng(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)
