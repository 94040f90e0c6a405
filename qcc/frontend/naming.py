"""Names: from the model's, which may hold anything, to those that the text form can hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from qcc.ir.graph import Graph, Op, Value, fresh_name

_ILLEGAL: Final = re.compile(r"[\s,()%\ud800-\udfff]")


def legal(name: str) -> str:
    """``name`` with every character that the text form reserves replaced by an underscore."""
    return _ILLEGAL.sub("_", name) or "_"


def renamed(graph: Graph, wanted: Mapping[str, str], exact: Sequence[str]) -> Graph:
    """``graph`` with values called what ``wanted`` says, made unique by numeric suffixes.

    Values whose wanted name is in ``exact`` (inputs and outputs) get theirs before all others.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    values = [*graph.inputs, *(v for o in graph.ops for v in o.results)]
    reserved = set(exact)
    for value in sorted(values, key=lambda v: wanted.get(v.name) not in reserved):
        names[value.name] = fresh_name(wanted.get(value.name, value.name), taken)
        taken.add(names[value.name])

    def of(values: Sequence[Value]) -> tuple[Value, ...]:
        return tuple(replace(v, name=names[v.name]) for v in values)

    ops = tuple(Op(o.kind, of(o.operands), of(o.results), o.attrs) for o in graph.ops)
    return Graph(graph.name, graph.stage, of(graph.inputs), ops, of(graph.outputs))
