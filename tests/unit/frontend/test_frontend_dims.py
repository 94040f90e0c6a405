"""Integers that depend on the batch: arithmetic, comparisons for every batch size at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcc.frontend.dims import BATCH_DIM, Dim, UndecidedError, decide, settled

N = BATCH_DIM
SMALL = st.integers(-6, 6)
DIMS = st.one_of(SMALL, st.builds(Dim.of, SMALL, SMALL))


def at(value: Dim | int, n: int) -> int:
    return value.slope * n + value.offset if isinstance(value, Dim) else value


@given(DIMS, DIMS, st.sampled_from([operator.add, operator.sub, operator.mul, operator.floordiv]))
def test_arithmetic_is_exact_or_undecided(a: Any, b: Any, compute: Callable[[Any, Any], Any]) -> None:
    try:
        result = compute(a, b)
    except (UndecidedError, ZeroDivisionError):
        return
    for n in (1, 2, 7):
        if compute is not operator.floordiv or at(b, n):
            assert at(result, n) == compute(at(a, n), at(b, n))


@given(DIMS, DIMS, st.sampled_from([operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge]))
def test_comparisons_hold_for_every_batch(a: Any, b: Any, compare: Callable[[Any, Any], bool]) -> None:
    answers = {compare(at(a, n), at(b, n)) for n in range(1, 50)}
    try:
        assert answers == {decide(compare, a, b)}
    except UndecidedError:
        assert len(answers) == 2


def test_the_batch_cancels_out() -> None:
    assert N * 6 // (N * 2) == 3
    assert N - N == 0
    assert Dim(1, 2) == (N * 4 + 8) // 4
    assert Dim(-1, 5) == 5 - N


@pytest.mark.parametrize(
    ("compute", "a", "b"),
    [
        (operator.floordiv, N, 2),
        (operator.floordiv, 7, N),
        (operator.mul, N, N),
        (operator.mul, N, 0.5),
        (operator.truediv, N, 0),
    ],
)
def test_what_no_expression_holds_is_undecided(compute: Callable[[Any, Any], Any], a: Any, b: Any) -> None:
    with pytest.raises(UndecidedError):
        compute(a, b)


def test_arrays_settle_once_the_batch_is_gone() -> None:
    shape = np.array([N, 3, 8], object)
    assert settled(shape).dtype == object
    assert settled(shape[1:]).dtype == np.int64
    assert settled(np.array([1.5, 2], object)).dtype == np.float32
