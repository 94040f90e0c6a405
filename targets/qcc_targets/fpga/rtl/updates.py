"""What the accumulations of a scheduled function add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qcc.errors import TargetError
from qcc_targets.fpga.rtl.circuit import Signal
from qcc_targets.fpga.rtl.expression import Expressions
from qcc_targets.fpga.rtl.tensorir import Store


def adds(updates: Sequence[Store]) -> bool:
    """Whether updates add to their accumulators, and do not take maxima."""
    return type(updates[0].value).__name__ != "Max"


def is_start(store: Store) -> bool:
    """Whether a store gives an accumulator its first value."""
    return type(store.value).__name__ == "IntImm"


def increment(store: Store, values: Expressions) -> Signal:
    """What an update adds to its accumulator, or takes the maximum of it with."""
    if type(store.value).__name__ == "Max":
        (term,) = (e for e in (store.value.a, store.value.b) if not _is_sum(e))
        return values.value(term, store.unrolled)
    return values.total([(sign, e) for sign, e in _terms(store.value, 1) if not _is_sum(e)], store.unrolled)


def factors(update: Store) -> tuple[Any, Any]:
    """The code and the weight whose product an update adds."""
    terms = [e for _, e in _terms(update.value, 1) if not _is_sum(e)]
    if len(terms) != 1 or type(terms[0]).__name__ != "Mul":
        raise TargetError(f"an accumulation of {str(update.value)[:80]} has no hardware")
    a, b = terms[0].a, terms[0].b
    return (b, a) if _is_weight(a) else (a, b)


def _is_weight(expr: Any) -> bool:
    while type(expr).__name__ == "Cast":
        expr = expr.value
    return type(expr).__name__ == "TensorLoad" and str(expr.source.name) == "w"


def _terms(expr: Any, sign: int) -> list[tuple[int, Any]]:
    """``expr`` as a sum; simplification may have moved a zero point out of its term."""
    kind = type(expr).__name__
    if kind not in ("Add", "Sub"):
        return [(sign, expr)]
    return [*_terms(expr.a, sign), *_terms(expr.b, sign if kind == "Add" else -sign)]


def _is_sum(expr: Any) -> bool:
    return type(expr).__name__ == "TensorLoad" and str(expr.source.name) == "acc"
