"""What a rewriting rule is, what it may see, and how a graph is replayed through many of them."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.ir import build
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, live, op, producers

_VERSION: Final = re.compile(r"\.v\d+$")

Answer = Sequence[Op] | Value | None
"""None keeps an operation; a value of the same type stands in for its result; operations, of which
the last defines a value of the result's name, stand in for the operation."""


class Scope:
    """One graph as rules see it: who defines a value, who reads it, which names are free.

    The graph is the one *before* the sweep. Its definitions stay valid while the sweep rewrites
    their users, since every rule preserves every value that keeps its name.
    """

    def __init__(self, graph: Graph, log: logging.Logger) -> None:
        self.graph = graph
        self._made = producers(graph)
        self._inputs = {v.name for v in graph.inputs}
        self._outputs = {v.name for v in graph.outputs}
        self._users: dict[str, list[Op]] = {}
        for o in graph.ops:
            for v in o.operands:
                self._users.setdefault(v.name, []).append(o)
        self._uses = Counter(v.name for slots in (graph.outputs, *(o.operands for o in graph.ops)) for v in slots)
        self._taken = self._inputs | set(self._made)
        self._place = {o.result.name: i for i, o in enumerate(graph.ops)}
        self._log = log

    def producer(self, value: Value, *kinds: str) -> Op | None:
        """The operation that defines ``value``, if it is of one of ``kinds`` (any, when none is given)."""
        made = self._made.get(value.name)
        return made if made is not None and (not kinds or made.kind in kinds) else None

    def sole_producer(self, value: Value, *kinds: str) -> Op | None:
        """Like ``producer``, but only where ``value`` has no other use, being a graph output included."""
        return self.producer(value, *kinds) if self._uses[value.name] <= 1 else None

    def constant(self, value: Value) -> NDArray[Any] | None:
        """The array behind ``value``, or None where it is not a constant."""
        made = self.producer(value, "constant")
        return None if made is None else made.array

    def users(self, value: Value) -> Sequence[Op]:
        """The operations that read ``value``, once per operand slot."""
        return self._users.get(value.name, ())

    def is_input(self, value: Value) -> bool:
        return value.name in self._inputs

    def is_output(self, value: Value) -> bool:
        return value.name in self._outputs

    def place(self, value: Value) -> int:
        """Position of the value's definition in the graph; -1 for inputs and values of this sweep."""
        return self._place.get(value.name, -1)

    def fresh(self, stem: str) -> str:
        """A name that nothing bears, made from ``stem``; taken from now on.

        A version that an earlier sweep put behind the name is dropped, so that names do not grow.
        """
        base = name = _VERSION.sub("", stem)
        version = 0
        while name in self._taken:
            version += 1
            name = f"{base}.v{version}"
        self._taken.add(name)
        return name

    def keep(self, o: Op, why: str) -> Answer:
        """The answer of a rule that almost matched: None, after saying why at debug level."""
        self._log.debug("%s kept: %s", o, why)
        return None

    def rewrote(self, o: Op, rule: Rule) -> None:
        self._log.debug("%s rewritten: %s", o, rule.name)


@dataclass(frozen=True, slots=True)
class Rule:
    """``apply`` is asked about every operation of ``kinds``; it anchors on the consumer of its pattern."""

    kinds: frozenset[str]
    apply: Callable[[Op, Scope], Answer]

    @property
    def name(self) -> str:
        return self.apply.__name__.replace("_", "-")


def on(*kinds: str) -> Callable[[Callable[[Op, Scope], Answer]], Rule]:
    """Make a function the rule for operations of ``kinds``."""
    return lambda function: Rule(frozenset(kinds), function)


def infer(kind: str, operands: Sequence[Value], name: str, **attrs: Attr) -> Op:
    """An operation of stage FLOAT whose result, called ``name``, has the inferred type."""
    return build.infer(Stage.FLOAT, kind, operands, name, attrs)


def sweep(graph: Graph, rules: Iterable[Rule], log: logging.Logger) -> tuple[Graph, int]:
    """Replay ``graph`` once, each operation through the first rule that matches it.

    Returns the graph without dead operations, and the number of rewrites. Inputs and outputs keep
    their names.
    """
    by_kind: dict[str, list[Rule]] = {}
    for rule in rules:
        for kind in rule.kinds:
            by_kind.setdefault(kind, []).append(rule)
    scope = Scope(graph, log)
    env = {v.name: v for v in graph.inputs}
    ops: list[Op] = []
    rewrites = 0
    for old in graph.ops:
        current = _rebind(old, env)
        answer = _ask(current, by_kind.get(old.kind, ()), scope)
        if isinstance(answer, Value):
            env[old.result.name] = env.get(answer.name, answer)
        else:
            for new in (current,) if answer is None else answer:
                bound = _rebind(new, env)
                ops.append(bound)
                env |= {v.name: v for v in bound.results}
        rewrites += answer is not None
    swept = _name_outputs(graph, ops, [env[v.name] for v in graph.outputs], scope)
    return swept, rewrites


def _rebind(o: Op, env: Mapping[str, Value]) -> Op:
    if all(env.get(v.name, v) is v for v in o.operands):
        return o
    return replace(o, operands=tuple(env.get(v.name, v) for v in o.operands))


def _ask(o: Op, rules: Iterable[Rule], scope: Scope) -> Answer:
    for rule in rules:
        answer = rule.apply(o, scope)
        if answer is not None:
            scope.rewrote(o, rule)
            return answer
    return None


def _name_outputs(graph: Graph, ops: list[Op], values: Sequence[Value], scope: Scope) -> Graph:
    """The graph whose outputs are ``values`` under the names of ``graph.outputs``.

    A forwarded output renames the value that it was forwarded to, unless that is an input or
    already bears the name of another output: then a reshape to the same shape stays as a copy.
    """
    wanted = {v.name for v in graph.outputs}
    names: dict[str, str] = {}
    copies: list[Op] = []
    outputs: list[Value] = []
    for old, new in zip(graph.outputs, values, strict=True):
        name = names.get(new.name, new.name)
        if name == old.name:
            outputs.append(replace(new, name=name))
        elif scope.is_input(new) or name in wanted:
            source = replace(new, name=name)
            copies.append(op("reshape", (source,), (old,), shape=new.type.shape))
            outputs.append(old)
        else:
            names[new.name] = old.name
            outputs.append(replace(new, name=old.name))
    if names:
        ops = [_rename(o, names) for o in ops]
    return replace(graph, ops=live([*ops, *copies], outputs), outputs=tuple(outputs))


def _rename(o: Op, names: Mapping[str, str]) -> Op:
    if not any(v.name in names for v in (*o.operands, *o.results)):
        return o

    def renamed(values: tuple[Value, ...]) -> tuple[Value, ...]:
        return tuple(replace(v, name=names.get(v.name, v.name)) for v in values)

    return replace(o, operands=renamed(o.operands), results=renamed(o.results))


def fixpoint(graph: Graph, rules: Sequence[Rule], log: logging.Logger) -> Graph:
    """Sweep until no rule matches.

    A layout change may have to pass every operation, one per sweep; when rules still match after
    twice as many sweeps, two of them undo each other, which is a PassError.
    """
    limit = 50 + 2 * len(graph.ops)
    for _ in range(limit):
        graph, rewrites = sweep(graph, rules, log)
        if not rewrites:
            return graph
    raise PassError(f"rules still match '{graph.name}' after {limit} sweeps: two of them undo each other")
