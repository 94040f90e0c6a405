"""Bit assignment as an integer linear program: one choice per group, costs below budgets.

One binary variable per (group, choice), each group choosing exactly one (HAWQ-V3, arXiv:2011.10680,
eq. 12, with more than two choices and any number of budgets at once). The objective is the sum of
the choices' sensitivities or, with a Gram matrix, the quadratic form that also holds the
inter-layer terms; being positive semidefinite, it is solved exactly by outer approximation
(Duran and Grossmann, 1986): tangent planes are added until the bound meets the best assignment.
HiGHS solves the programs, on one thread with a fixed seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from qcc.errors import ConfigError, PassError

_SLACK = 1e-9
"""Relative slack on a budget, for sums of floats that meet it exactly."""
_MAX_CUTS = 500


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to quantize a group: its widths in bits, its sensitivity, and its cost per metric."""

    weight_bits: int
    activation_bits: int
    sensitivity: float
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that must agree on one choice."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    """``picks[i]`` indexes the choice of group i; ``bound`` is a proven lower bound on ``objective``."""

    picks: tuple[int, ...]
    objective: float
    bound: float
    used: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Proven relative distance to the optimum."""
        return max(0.0, self.objective - self.bound) / max(abs(self.objective), 1e-300)


def assign(
    groups: Sequence[Group], budgets: Mapping[str, float], gram: NDArray[np.float64] | None = None
) -> Assignment:
    """The choices of least sensitivity whose costs stay within every budget.

    ``budgets`` maps metrics to upper bounds in the unit of the choices' costs. ``gram``, if given,
    is positive semidefinite over all choices in order, [choices, choices], and replaces the
    sensitivities. Raises ConfigError for an unknown metric or a budget out of reach (naming the
    tightest that can be reached), PassError when the solver fails.
    """
    _check(groups, budgets)
    linear = _per_choice(groups, lambda c: c.sensitivity)
    if gram is None:
        picks, bound = _minimize(groups, linear, budgets)
        return _assignment(groups, picks, float(linear[_columns(groups, picks)].sum()), bound)
    return _quadratic(groups, budgets, gram)


def total(groups: Sequence[Group], picks: Sequence[int], metric: str) -> float:
    """The cost of an assignment in one metric."""
    return math.fsum(g.choices[p].costs[metric] for g, p in zip(groups, picks, strict=True))


def _check(groups: Sequence[Group], budgets: Mapping[str, float]) -> None:
    if not groups or not all(g.choices for g in groups):
        raise ConfigError("bit assignment needs at least one group, and a choice in each")
    known = set.intersection(*({*c.costs} for g in groups for c in g.choices))
    for metric, limit in budgets.items():
        if metric not in known:
            raise ConfigError(f"unknown budget metric '{metric}'; known: {', '.join(sorted(known)) or 'none'}")
        if not math.isfinite(limit):
            raise ConfigError(f"the budget for '{metric}' must be a finite number, got {limit}")
        least = math.fsum(min(c.costs[metric] for c in g.choices) for g in groups)
        if least > limit * (1 + _SLACK):
            raise ConfigError(f"no assignment has {metric} <= {limit:g}; the tightest reachable is {least:g}")


def _quadratic(groups: Sequence[Group], budgets: Mapping[str, float], gram: NDArray[np.float64]) -> Assignment:
    """Outer approximation: minimise the greatest tangent plane seen so far."""
    count = sum(len(g.choices) for g in groups)
    if gram.shape != (count, count) or not np.isfinite(gram).all():
        raise PassError(f"the Gram matrix has shape {gram.shape}; {count} choices need a finite [{count}, {count}]")
    scale = float(np.abs(gram).max()) or 1.0
    form = (gram + gram.T) / (2 * scale)
    picks, _ = _minimize(groups, np.diag(form).copy(), budgets)
    best, best_value, bound = picks, math.inf, 0.0
    planes: list[tuple[NDArray[np.float64], float]] = []
    for _ in range(_MAX_CUTS):
        columns = _columns(groups, picks)
        value = float(form[np.ix_(columns, columns)].sum())
        if value < best_value:
            best, best_value = picks, value
        # x'Ax >= 2 x_k'A x - x_k'A x_k for every x, since A is positive semidefinite.
        planes.append((2 * form[:, columns].sum(axis=1), value))
        picks, bound = _minimize(groups, np.zeros(count), budgets, planes)
        if bound >= best_value - 1e-9 * max(1.0, best_value):
            break
    return _assignment(groups, best, best_value * scale, min(bound, best_value) * scale)


def _minimize(
    groups: Sequence[Group],
    linear: NDArray[np.float64],
    budgets: Mapping[str, float],
    planes: Sequence[tuple[NDArray[np.float64], float]] = (),
) -> tuple[tuple[int, ...], float]:
    """Solve the program; with ``planes`` also minimise t >= slope·x - offset. Returns picks and bound."""
    scale = float(np.abs(linear).max()) or 1.0
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("random_seed", 0)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 1e-12)
    columns = np.arange(len(linear), dtype=np.int32)
    for cost in linear / scale:
        solver.addVar(0.0, 1.0)
        solver.changeColCost(solver.getNumCol() - 1, float(cost))
    for column in columns:
        solver.changeColIntegrality(int(column), highspy.HighsVarType.kInteger)
    start = 0
    for group in groups:
        members = columns[start : start + len(group.choices)]
        solver.addRow(1.0, 1.0, len(members), members, np.ones(len(members)))
        start += len(members)
    for metric, limit in budgets.items():
        costs = _per_metric(groups, metric)
        unit = abs(limit) or float(np.abs(costs).max()) or 1.0
        solver.addRow(-highspy.kHighsInf, limit / unit + _SLACK, len(costs), columns, costs / unit)
    if planes:
        solver.addVar(0.0, highspy.kHighsInf)
        height = solver.getNumCol() - 1
        solver.changeColCost(height, 1.0)
        for slope, offset in planes:
            row = np.append(columns, np.int32(height))
            solver.addRow(-offset, highspy.kHighsInf, len(row), row, np.append(-slope, 1.0))
    solver.run()
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        raise ConfigError(_contradiction(groups, budgets))
    if status != highspy.HighsModelStatus.kOptimal:
        raise PassError(f"the bit-assignment program was not solved: {solver.modelStatusToString(status)}")
    values = np.array(solver.getSolution().col_value)
    picks, start = [], 0
    for group in groups:
        picks.append(int(np.argmax(values[start : start + len(group.choices)])))
        start += len(group.choices)
    return tuple(picks), float(solver.getInfo().mip_dual_bound) * (1.0 if planes else scale)


def _contradiction(groups: Sequence[Group], budgets: Mapping[str, float]) -> str:
    """Each budget is reachable alone, all together are not: the tightest of each, given the others."""
    limits = ", ".join(f"{m} <= {v:g}" for m, v in budgets.items())
    hints = []
    for metric in budgets:
        others = {m: v for m, v in budgets.items() if m != metric}
        try:
            picks, _ = _minimize(groups, _per_metric(groups, metric), others)
        except ConfigError:
            continue
        hints.append(f"{metric} can reach {total(groups, picks, metric):g} within the others")
    return f"the budgets contradict each other ({limits}): {'; '.join(hints) or 'no single one is to blame'}"


def _assignment(groups: Sequence[Group], picks: tuple[int, ...], objective: float, bound: float) -> Assignment:
    metrics = set.intersection(*({*c.costs} for g in groups for c in g.choices))
    return Assignment(picks, objective, bound, {m: total(groups, picks, m) for m in sorted(metrics)})


def _per_choice(groups: Sequence[Group], read: Callable[[Choice], float]) -> NDArray[np.float64]:
    return np.array([read(c) for g in groups for c in g.choices], np.float64)


def _per_metric(groups: Sequence[Group], metric: str) -> NDArray[np.float64]:
    return _per_choice(groups, lambda c: c.costs[metric])


def _columns(groups: Sequence[Group], picks: Sequence[int]) -> NDArray[np.int64]:
    starts = np.cumsum([0, *(len(g.choices) for g in groups)])[:-1]
    columns: NDArray[np.int64] = starts + np.array(picks)
    return columns
