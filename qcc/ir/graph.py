"""The IR: a graph is an immutable list of single-assignment operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.types import Const, TensorType

Attr = int | float | str | bool | tuple[int, ...] | tuple[float, ...] | Const


class Stage(StrEnum):
    """How far a graph has come; ``qcc.ir.verify`` says what each stage may hold."""

    FLOAT = "float"
    QUANTIZED = "quantized"
    INTEGER = "integer"


@dataclass(frozen=True, slots=True)
class Value:
    name: str
    type: TensorType

    def typed(self, **changes: Any) -> Value:
        """This value with fields of its type replaced (``shape``, ``dtype``, ``quant``)."""
        return replace(self, type=replace(self.type, **changes))


@dataclass(frozen=True, slots=True)
class Op:
    kind: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    attrs: Mapping[str, Attr]

    @property
    def result(self) -> Value:
        """The only result; every operation of today's opset has exactly one."""
        (value,) = self.results
        return value

    def int_attr(self, name: str) -> int:
        value: int = self._typed(name, int)
        return value

    def bool_attr(self, name: str) -> bool:
        value: bool = self._typed(name, bool)
        return value

    def str_attr(self, name: str) -> str:
        value: str = self._typed(name, str)
        return value

    def ints_attr(self, name: str) -> tuple[int, ...]:
        value: tuple[int, ...] = self._typed(name, tuple)
        return value

    def floats_attr(self, name: str) -> tuple[float, ...]:
        return tuple(map(float, self._typed(name, tuple)))

    def float_attr(self, name: str, default: float | None = None) -> float:
        """A float attribute; ``default`` stands in where the attribute is absent."""
        if name not in self.attrs and default is not None:
            return default
        value = self.attrs.get(name)
        if not isinstance(value, (int, float)):
            raise VerifyError(f"{self}: attribute '{name}' must be a number, got {value!r}")
        return value

    @property
    def array(self) -> NDArray[Any]:
        """The array of a ``constant``."""
        const: Const = self._typed("value", Const)
        return const.array

    def _typed(self, name: str, kind: type[Any]) -> Any:
        value = self.attrs.get(name)
        if not isinstance(value, kind):
            raise VerifyError(f"{self}: attribute '{name}' must be {kind.__name__}, got {value!r}")
        return value

    def __str__(self) -> str:
        return f"{self.kind} {', '.join('%' + v.name for v in self.results)}"


def op(kind: str, operands: Sequence[Value], results: Sequence[Value], **attrs: Attr) -> Op:
    return Op(kind, tuple(operands), tuple(results), MappingProxyType(dict(sorted(attrs.items()))))


def constant(name: str, array: NDArray[Any], **type_fields: Any) -> Op:
    """A ``constant`` operation that holds ``array``; ``type_fields`` may give a ``quant``."""
    const = Const(array)
    value = Value(name, TensorType(tuple(const.array.shape), const.dtype, **type_fields))
    return op("constant", (), (value,), value=const)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Graph:
    """Identity is the cache key of every analysis, so equality is identity; compare ``text``."""

    name: str
    stage: Stage
    inputs: tuple[Value, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Value, ...]

    def __post_init__(self) -> None:
        defined = {v.name: v for v in self.inputs}
        if len(defined) != len(self.inputs):
            raise VerifyError("two graph inputs share one name")
        for o in self.ops:
            for v in o.operands:
                if defined.get(v.name) != v:
                    raise VerifyError(f"{o}: operand %{v.name} is used before it is defined, or with another type")
            for v in o.results:
                if v.name in defined:
                    raise VerifyError(f"{o}: %{v.name} is defined twice")
                defined[v.name] = v
        for v in self.outputs:
            if defined.get(v.name) != v:
                raise VerifyError(f"output %{v.name} is never defined, or has another type")


def producers(graph: Graph) -> dict[str, Op]:
    """The operation that defines each value, by value name (an analysis)."""
    return {v.name: o for o in graph.ops for v in o.results}


def users(graph: Graph) -> dict[str, list[Op]]:
    """The operations that read each value, in order, once per operand slot (an analysis)."""
    table: dict[str, list[Op]] = {v.name: [] for v in graph.inputs}
    table |= {v.name: [] for o in graph.ops for v in o.results}
    for o in graph.ops:
        for v in o.operands:
            table[v.name].append(o)
    return table


def constants(graph: Graph) -> dict[str, NDArray[Any]]:
    """The arrays of the graph's constants, by value name (an analysis)."""
    return {o.result.name: o.array for o in graph.ops if o.kind == "constant"}


def fresh_name(stem: str, taken: Iterable[str]) -> str:
    """``stem``, or ``stem_1``, ``stem_2`` …: the first that is not taken."""
    names = taken if isinstance(taken, (set, frozenset, dict)) else set(taken)
    if stem not in names:
        return stem
    number = 1
    while f"{stem}_{number}" in names:
        number += 1
    return f"{stem}_{number}"


Rule = Callable[[Op], Iterable[Op] | None]


def rewrite(graph: Graph, rule: Rule, *, stage: Stage | None = None) -> Graph:
    """Replay ``graph`` through ``rule``, then drop operations nobody uses.

    A rule answers None to keep an operation, or the operations that stand in for it; the last of
    these must define values of the same names (their types may differ: users are re-typed).
    Rules anchor on the consumer of a pattern, so a producer they absorb simply goes dead.
    """
    env = {v.name: v for v in graph.inputs}
    ops: list[Op] = []
    for old in graph.ops:
        current = replace(old, operands=tuple(env[v.name] for v in old.operands))
        stand_ins = rule(current)
        for new in (current,) if stand_ins is None else stand_ins:
            new = replace(new, operands=tuple(env.get(v.name, v) for v in new.operands))
            ops.append(new)
            env |= {v.name: v for v in new.results}
    outputs = tuple(env[v.name] for v in graph.outputs)
    return replace(graph, ops=live(ops, outputs), outputs=outputs, stage=stage or graph.stage)


def live(ops: Sequence[Op], outputs: Sequence[Value]) -> tuple[Op, ...]:
    """The operations that ``outputs`` depend on, in order."""
    used = {v.name for v in outputs}
    kept: list[Op] = []
    for o in reversed(ops):
        if any(v.name in used for v in o.results):
            kept.append(o)
            used |= {v.name for v in o.operands}
    return tuple(reversed(kept))
