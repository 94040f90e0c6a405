"""Expressions of TensorIR as signals of a circuit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qcc.errors import TargetError
from qcc_targets.fpga.rtl.circuit import Circuit, Signal, literal
from qcc_targets.fpga.rtl.tensorir import Affine, affine, flat_index

Load = Callable[[str, Affine], Signal]
"""The signal of an element of a buffer, by its name and dense index."""

Test = Callable[[Affine], Signal]
"""A bit that tells whether an affine expression is at least 0."""


class Expressions:
    """Writes expressions into ``circuit``; equal ones of one setting of the unrolled loops are not joined."""

    def __init__(self, circuit: Circuit, load: Load, test: Test, lookup: Callable[[Signal, Any], Signal] | None = None):
        self._circuit, self._load, self._test, self._lookup = circuit, load, test, lookup

    def value(self, expr: Any, unrolled: Mapping[str, int]) -> Signal:
        """The signal of ``expr``. Raises TargetError where it has no hardware, or a cast would lose bits."""
        kind, circuit = type(expr).__name__, self._circuit
        if kind == "IntImm":
            return literal(int(expr.value))
        if kind == "Cast":
            return self._fits(self.value(expr.value, unrolled), str(expr.ty.dtype))
        if kind == "TensorLoad":
            return self._loaded(expr, unrolled)
        if kind == "Call" and expr.op.name.endswith("if_then_else"):
            condition, yes, no = expr.args
            return self._chosen(condition, yes, no, unrolled)
        if kind == "Select":
            return self._chosen(expr.condition, expr.true_value, expr.false_value, unrolled)
        if kind == "RShift":
            return circuit.shift_right(self.value(expr.a, unrolled), int(expr.b.value))
        operations = {
            "Add": circuit.add,
            "Sub": circuit.subtract,
            "Mul": circuit.multiply,
            "Max": circuit.maximum,
            "Min": circuit.minimum,
        }
        if kind not in operations:
            raise TargetError(f"an expression {kind} of a scheduled function has no hardware: {str(expr)[:80]}")
        return operations[kind](self.value(expr.a, unrolled), self.value(expr.b, unrolled))

    def total(self, terms: Sequence[tuple[int, Any]], unrolled: Mapping[str, int]) -> Signal:
        """The sum of signed expressions."""
        (sign, first), *rest = sorted(((sign, self.value(e, unrolled)) for sign, e in terms), key=lambda t: -t[0])
        total = first if sign > 0 else self._circuit.subtract(literal(0), first)
        for sign, signal in rest:
            total = (self._circuit.add if sign > 0 else self._circuit.subtract)(total, signal)
        return total

    def _fits(self, signal: Signal, dtype: str) -> Signal:
        info = np.iinfo(dtype)
        if signal.codes.low < info.min or signal.codes.high > info.max:
            raise TargetError(f"a scheduled function narrows {signal.codes} to {dtype}")
        return signal

    def _loaded(self, expr: Any, unrolled: Mapping[str, int]) -> Signal:
        name = str(expr.source.name)
        try:
            index = flat_index(expr.source, expr.indices, unrolled)
        except TargetError:
            if self._lookup is None:
                raise
            # A table: the last index is a code, not a place.
            *row, code = expr.indices
            return self._lookup(self.value(code, unrolled), flat_index(_Row(expr), row, unrolled))
        return self._load(name, index)

    def _chosen(self, condition: Any, yes: Any, no: Any, unrolled: Mapping[str, int]) -> Signal:
        bits = [self._test(a) for a in _conjuncts(condition, unrolled)]
        chosen = [b for b in bits if not b.constant]
        if any(b.constant and not b.codes.low for b in bits):
            return self.value(no, unrolled)
        taken = self.value(yes, unrolled)
        if not chosen:
            return taken
        return self._circuit.select(self._circuit.all_of(chosen), taken, self.value(no, unrolled))


class _Row:
    """A table's rows as a buffer of their own."""

    def __init__(self, expr: Any) -> None:
        self.shape = list(expr.source.shape)[:-1]


def _conjuncts(expr: Any, unrolled: Mapping[str, int]) -> list[Affine]:
    """What must all be at least 0 for ``expr`` to hold."""
    kind = type(expr).__name__
    if kind == "And":
        return [*_conjuncts(expr.a, unrolled), *_conjuncts(expr.b, unrolled)]
    if kind in ("LE", "LT", "GE", "GT", "EQ"):
        a, b = affine(expr.a, unrolled), affine(expr.b, unrolled)
        difference = b.plus(a, -1) if kind in ("LE", "LT") else a.plus(b, -1)
        if kind == "EQ":
            return [difference, difference.times(-1)]
        return [difference.plus(Affine(-1, {})) if kind in ("LT", "GT") else difference]
    raise TargetError(f"a condition {kind} of a scheduled function has no hardware: {str(expr)[:80]}")
