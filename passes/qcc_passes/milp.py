"""Zero-one programs with one choice per group, solved by HiGHS on one thread with a fixed seed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError

Vector = NDArray[np.float64]

SLACK = 1e-9
"""Relative slack on a limit, for sums of floats that meet it exactly."""


@dataclass(frozen=True, slots=True)
class Row:
    """``coefficients · x <= limit``."""

    coefficients: Vector
    limit: float


@dataclass(frozen=True, slots=True)
class Program:
    """``sizes[i]`` columns belong to group i, of which exactly one is 1; ``equal`` pairs of sums are equal.

    Each pair holds the columns of its two sides.
    """

    sizes: tuple[int, ...]
    rows: tuple[Row, ...]
    equal: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


def solve(
    program: Program, linear: Vector, planes: Sequence[tuple[Vector, float]] = ()
) -> tuple[tuple[int, ...], float] | None:
    """Minimise ``linear · x``, or with ``planes`` t >= slope · x - offset for each (slope, offset).

    Returns what each group picks and a proven lower bound; None when there is no solution.
    Raises PassError when the solver fails.
    """
    scale = float(np.abs(linear).max()) or 1.0
    solver = _solver()
    count = len(linear)
    columns = np.arange(count, dtype=np.int32)
    for cost in linear / scale:
        solver.addVar(0.0, 1.0)
        solver.changeColCost(solver.getNumCol() - 1, float(cost))
    for column in columns:
        solver.changeColIntegrality(int(column), highspy.HighsVarType.kInteger)
    start = 0
    for size in program.sizes:
        members = columns[start : start + size]
        solver.addRow(1.0, 1.0, size, members, np.ones(size))
        start += size
    for left, right in program.equal:
        index = np.array([*left, *right], np.int32)
        solver.addRow(0.0, 0.0, len(index), index, np.array([1.0] * len(left) + [-1.0] * len(right)))
    for row in program.rows:
        unit = abs(row.limit) or float(np.abs(row.coefficients).max()) or 1.0
        solver.addRow(-highspy.kHighsInf, row.limit / unit + SLACK, count, columns, row.coefficients / unit)
    if planes:
        solver.addVar(0.0, highspy.kHighsInf)
        height = solver.getNumCol() - 1
        solver.changeColCost(height, 1.0)
        for slope, offset in planes:
            index = np.append(columns, np.int32(height))
            solver.addRow(-offset, highspy.kHighsInf, len(index), index, np.append(-slope, 1.0))
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return None
    if status != highspy.HighsModelStatus.kOptimal:
        raise PassError(f"the zero-one program was not solved: {solver.modelStatusToString(status)}")
    bound = float(solver.getInfo().mip_dual_bound) * (1.0 if planes else scale)
    return _picks(program.sizes, np.array(solver.getSolution().col_value)), bound


class _Silent(highspy.Highs):  # type: ignore[misc]
    """A solver that says nothing: the first call of the constructor, this one, would print HiGHS's name already."""

    def enableCallbacks(self) -> None:  # noqa: N802 - HiGHS's own name
        self.silent()
        super().enableCallbacks()


def _solver() -> highspy.Highs:
    solver = _Silent()
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("random_seed", 0)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 1e-12)
    return solver


def _picks(sizes: Sequence[int], values: Vector) -> tuple[int, ...]:
    starts = np.cumsum([0, *sizes])
    return tuple(int(np.argmax(values[a:b])) for a, b in itertools.pairwise(starts))
