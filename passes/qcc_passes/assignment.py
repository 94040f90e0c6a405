"""Bit assignment as an integer linear program: one choice per group, costs below budgets.

One binary variable per (group, choice), each group choosing exactly one (HAWQ-V3, arXiv:2011.10680,
eq. 12, with more than two choices and any number of budgets at once). The objective is the sum of
the choices' sensitivities or, with a Gram matrix, the quadratic form that also holds the
inter-layer terms; being positive semidefinite, it is solved exactly by outer approximation
(Duran and Grossmann, 1986): tangent planes are added until the bound meets the best assignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import BudgetError, ConfigError, PassError
from qcc_passes.milp import SLACK, Program, Row, Vector, solve

DROP: Final = "drop"
"""The metric that is the objective itself, so that it can be bounded while another is minimised."""
_MAX_CUTS: Final = 500


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to quantize a group: its widths in bits, its sensitivity, and its cost per metric.

    Costs named ``metric@place`` are summed place by place; the metric is the largest of the sums
    (memory that is held at once, by step).
    """

    weight_bits: int
    activation_bits: int
    sensitivity: float
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that must agree on one choice; groups with the same ``site`` agree on ``activation_bits``."""

    name: str
    choices: tuple[Choice, ...]
    site: str | None = None


@dataclass(frozen=True, slots=True)
class Assignment:
    """``picks[i]`` indexes the choice of group i; ``bound`` is a proven lower bound on ``objective``.

    ``used`` holds the costs of all metrics, and ``drop`` the sum of sensitivities (or the quadratic form).
    """

    picks: tuple[int, ...]
    objective: float
    bound: float
    used: Mapping[str, float]

    @property
    def gap(self) -> float:
        """Proven relative distance to the optimum."""
        return max(0.0, self.objective - self.bound) / max(abs(self.objective), 1e-300)


def assign(
    groups: Sequence[Group],
    budgets: Mapping[str, float],
    gram: NDArray[np.float64] | None = None,
    minimize: str = DROP,
    max_cuts: int = _MAX_CUTS,
) -> Assignment:
    """The choices of least sensitivity (or least ``minimize``) whose costs stay within every budget.

    ``budgets`` maps metrics to upper bounds in the unit of the choices' costs; ``drop`` bounds the
    objective. ``gram``, if given, is positive semidefinite over all choices in order,
    [choices, choices], and replaces the sensitivities; ``max_cuts`` bounds the tangent planes, which
    leaves a gap where they do not suffice. Raises ConfigError for an unknown metric or a budget out
    of reach (BudgetError, naming the tightest that can be reached), PassError when the solver fails.
    """
    problem = _Problem(groups, budgets, gram, max_cuts)
    problem.check(minimize)
    return problem.least_drop() if minimize == DROP else problem.least(minimize)


def evaluated(groups: Sequence[Group], picks: tuple[int, ...], gram: NDArray[np.float64] | None = None) -> Assignment:
    """An assignment that was found otherwise: nothing is proved about it."""
    used = _Problem(groups, {}, gram, 1).used(picks)
    return Assignment(picks, used[DROP], 0.0, used)


def total(groups: Sequence[Group], picks: Sequence[int], metric: str) -> float:
    """The cost of an assignment in one metric."""
    chosen = [g.choices[p].costs for g, p in zip(groups, picks, strict=True)]
    return max(math.fsum(c.get(name, 0.0) for c in chosen) for name in _places(groups, metric))


class _Problem:
    def __init__(
        self,
        groups: Sequence[Group],
        budgets: Mapping[str, float],
        gram: NDArray[np.float64] | None,
        max_cuts: int,
    ) -> None:
        if not groups or not all(g.choices for g in groups):
            raise ConfigError("bit assignment needs at least one group, and a choice in each")
        self._groups = groups
        self._budgets = {m: v for m, v in budgets.items() if m != DROP}
        self._drop = budgets.get(DROP)
        self._max_cuts = max_cuts
        self._linear = _per_choice(groups, lambda c: c.sensitivity)
        self._form = None if gram is None else self._checked(gram)

    def check(self, minimize: str) -> None:
        """Raise ConfigError for unknown metrics, and for budgets that no assignment reaches."""
        known = _metrics(self._groups)
        for metric in (*self._budgets, *([minimize] if minimize != DROP else [])):
            if metric not in known:
                names = ", ".join((*known, DROP)) if known else DROP
                raise ConfigError(f"unknown budget metric '{metric}'; known: {names}")
        for metric, limit in (*self._budgets.items(), *([(DROP, self._drop)] if self._drop is not None else [])):
            if not math.isfinite(limit):
                raise ConfigError(f"the budget for '{metric}' must be a finite number, got {limit}")
        for metric, limit in self._budgets.items():
            least = self._tightest(metric, {})
            if least is not None and least > limit * (1 + SLACK):
                raise BudgetError(f"no assignment has {metric} <= {limit:g}; the tightest reachable is {least:g}")

    def least_drop(self) -> Assignment:
        """The least sensitivity within the budgets. Raises ConfigError when none is within all."""
        if self._form is None:
            found = self._solve(self._linear)
            best = self._assignment(*found)
        else:
            best = self._outer_approximation(self._form)
        if self._drop is not None and best.objective > self._drop * (1 + SLACK):
            raise BudgetError(
                f"no assignment within the other budgets has {DROP} <= {self._drop:g}; "
                f"the tightest reachable is {best.objective:g}"
            )
        return best

    def least(self, metric: str) -> Assignment:
        """The least of ``metric`` whose drop stays within its budget. Raises ConfigError."""
        place, *more = _places(self._groups, metric)
        if more:
            raise ConfigError(f"'{metric}' is a maximum over steps: it can be bounded, but not minimised")
        cost = _per_choice(self._groups, lambda c: c.costs[place])
        rows: list[Row] = []
        if self._drop is not None and self._form is None:
            rows.append(Row(self._linear, self._drop))
        for _ in range(self._max_cuts):
            found = solve(self._program(rows), cost)
            if found is None:
                self.least_drop()  # says which bound cannot be met
                raise PassError("the bit-assignment program has no solution")
            picks, bound = found
            if self._form is None or self._drop is None or self._value(picks) <= self._drop * (1 + SLACK):
                used = self.used(picks)
                return Assignment(picks, used[metric], min(bound, used[metric]), used)
            slope, offset = self._plane(self._form, picks)
            rows.append(Row(slope, self._drop + offset))
        raise PassError(f"{self._max_cuts} tangent planes do not describe '{DROP}' well enough; bound it less tightly")

    def _outer_approximation(self, form: Vector) -> Assignment:
        """Minimise the greatest tangent plane seen so far."""
        scale = float(np.abs(form).max()) or 1.0
        picks, _ = self._solve(np.diag(form).copy())
        best, best_value, bound = picks, math.inf, 0.0
        planes: list[tuple[Vector, float]] = []
        for _ in range(self._max_cuts):
            value = self._value(picks) / scale
            if value < best_value:
                best, best_value = picks, value
            slope, offset = self._plane(form, picks)
            planes.append((slope / scale, offset / scale))
            picks, bound = self._solve(np.zeros(len(form)), planes)
            if bound >= best_value * (1 - 1e-7) - 1e-12:
                break
        return Assignment(best, best_value * scale, min(bound, best_value) * scale, self.used(best))

    def _plane(self, form: Vector, picks: Sequence[int]) -> tuple[Vector, float]:
        """Slope and offset with x'Ax >= slope·x - offset for every x, equal at ``picks``: A is semidefinite."""
        columns = _columns(self._groups, picks)
        slope: Vector = 2 * form[:, columns].sum(axis=1)
        return slope, float(form[np.ix_(columns, columns)].sum())

    def _solve(self, linear: Vector, planes: Sequence[tuple[Vector, float]] = ()) -> tuple[tuple[int, ...], float]:
        found = solve(self._program(), linear, planes)
        if found is None:
            raise BudgetError(self._contradiction())
        return found

    def _program(self, more: Iterable[Row] = (), budgets: Mapping[str, float] | None = None) -> Program:
        rows = [
            Row(_per_choice(self._groups, lambda c, p=place: c.costs.get(p, 0.0)), limit)  # type: ignore[misc]
            for metric, limit in (self._budgets if budgets is None else budgets).items()
            for place in _places(self._groups, metric)
        ]
        return Program(tuple(len(g.choices) for g in self._groups), (*rows, *more), _ties(self._groups))

    def _tightest(self, metric: str, budgets: Mapping[str, float]) -> float | None:
        """The least of ``metric`` within ``budgets``; None when nothing is within them."""
        places = _places(self._groups, metric)
        costs = [_per_choice(self._groups, lambda c, p=place: c.costs.get(p, 0.0)) for place in places]  # type: ignore[misc]
        program = self._program(budgets=budgets)
        found = solve(program, costs[0]) if len(costs) == 1 else solve(program, 0 * costs[0], [(c, 0.0) for c in costs])
        return None if found is None else total(self._groups, found[0], metric)

    def _contradiction(self) -> str:
        """Each budget is reachable alone, all together are not: the tightest of each, given the others."""
        limits = ", ".join(f"{m} <= {v:g}" for m, v in self._budgets.items())
        hints = []
        for metric in self._budgets:
            least = self._tightest(metric, {m: v for m, v in self._budgets.items() if m != metric})
            if least is not None:
                hints.append(f"{metric} can reach {least:g} within the others")
        return f"the budgets contradict each other ({limits}): {'; '.join(hints) or 'no single one is to blame'}"

    def _assignment(self, picks: tuple[int, ...], bound: float) -> Assignment:
        value = self._value(picks)
        return Assignment(picks, value, min(bound, value), self.used(picks))

    def _value(self, picks: Sequence[int]) -> float:
        columns = _columns(self._groups, picks)
        if self._form is None:
            return float(self._linear[columns].sum())
        return float(self._form[np.ix_(columns, columns)].sum())

    def used(self, picks: Sequence[int]) -> dict[str, float]:
        """All costs, and the objective under ``drop``."""
        costs = {m: total(self._groups, picks, m) for m in _metrics(self._groups)}
        return {**costs, DROP: self._value(picks)}

    def _checked(self, gram: NDArray[np.float64]) -> Vector:
        count = len(self._linear)
        if gram.shape != (count, count) or not np.isfinite(gram).all():
            raise PassError(f"the Gram matrix has shape {gram.shape}; {count} choices need a finite [{count}, {count}]")
        form: Vector = (gram + gram.T) / 2
        return form


def _metrics(groups: Sequence[Group]) -> list[str]:
    """The metrics that every choice has costs of, and those that are given by place."""
    everywhere = set.intersection(*({*c.costs} for g in groups for c in g.choices))
    by_place = {name.partition("@")[0] for g in groups for c in g.choices for name in c.costs if "@" in name}
    return sorted({name for name in everywhere if "@" not in name} | by_place)


def _places(groups: Sequence[Group], metric: str) -> list[str]:
    """The costs whose maximum the metric is: one that stands for itself, or one by place."""
    names = {name for g in groups for c in g.choices for name in c.costs}
    return [metric] if metric in names else sorted(n for n in names if n.startswith(f"{metric}@"))


def _ties(groups: Sequence[Group]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """For groups of one site, and each activation width: both choose it or neither does."""
    starts = np.cumsum([0, *(len(g.choices) for g in groups)])
    first: dict[str, int] = {}
    ties = []
    for index, group in enumerate(groups):
        if group.site is None:
            continue
        leader = first.setdefault(group.site, index)
        widths = {c.activation_bits for g in (group, groups[leader]) for c in g.choices} if leader != index else set()
        for bits in sorted(widths):
            sides = [
                tuple(int(starts[i]) + k for k, c in enumerate(groups[i].choices) if c.activation_bits == bits)
                for i in (leader, index)
            ]
            ties.append((sides[0], sides[1]))
    return tuple(ties)


def _per_choice(groups: Sequence[Group], read: Callable[[Choice], float]) -> Vector:
    return np.array([read(c) for g in groups for c in g.choices], np.float64)


def _columns(groups: Sequence[Group], picks: Sequence[int]) -> NDArray[np.int64]:
    starts = np.cumsum([0, *(len(g.choices) for g in groups)])[:-1]
    columns: NDArray[np.int64] = starts + np.array(picks)
    return columns
