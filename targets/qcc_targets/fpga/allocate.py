"""Which folding every stage gets: the fastest network that a device holds, or the smallest that is fast enough.

A network of streaming stages yields a frame in as many cycles as its slowest stage takes (FINN, arXiv:1612.07119).
For a bound on these cycles, the stages' foldings are a zero-one program: one option per stage, resources below the
device's, the sum of shares least. The least bound that is feasible is found by bisection of the cycles that occur.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcc.errors import BudgetError
from qcc_passes.milp import SLACK, Program, Row, solve


@dataclass(frozen=True, slots=True)
class Option:
    """One way to build a stage: ``pe`` outputs times ``simd`` inputs at once.

    ``cycles`` is what a frame takes, ``usage`` what the stage takes of the device, by resource.
    """

    pe: int
    simd: int
    cycles: int
    usage: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Allocation:
    """An option for every stage, in order; ``cycles`` between frames, and ``usage`` of them all."""

    options: tuple[Option, ...]
    cycles: int
    usage: Mapping[str, float]


def fastest(stages: Sequence[Sequence[Option]], limits: Mapping[str, float]) -> Allocation:
    """The options with the fewest cycles between frames within ``limits``; of these, those that take least.

    Raises BudgetError where nothing fits, PassError where the solver fails.
    """
    floor = max(min(o.cycles for o in options) for options in stages)
    bounds = sorted({o.cycles for options in stages for o in options if o.cycles >= floor})
    best = smallest(stages, bounds[-1], limits)
    low, high = 0, bounds.index(best.cycles)
    while low < high:
        middle = (low + high) // 2
        try:
            best = smallest(stages, bounds[middle], limits)
        except BudgetError:
            low = middle + 1
        else:
            high = min(middle, bounds.index(best.cycles))
    return smallest(stages, bounds[high], limits)


def smallest(stages: Sequence[Sequence[Option]], cycles: int, limits: Mapping[str, float]) -> Allocation:
    """The options that take the smallest shares of ``limits`` with at most ``cycles`` between frames.

    Raises BudgetError where there are none, naming what they would take, PassError where the solver fails.
    """
    quick = [[o for o in options if o.cycles <= cycles] for options in stages]
    if not all(quick):
        least = max(min(o.cycles for o in options) for options in stages)
        raise BudgetError(f"no folding yields a frame in {cycles} cycles; the fastest takes {least}")
    groups = [_undominated(options) for options in quick]
    if (picks := _solve(groups, limits, limits)) is None:
        raise BudgetError(_too_small(groups, limits))
    return _allocation(groups, picks)


def least(stages: Sequence[Sequence[Option]], limits: Mapping[str, float]) -> dict[str, float]:
    """What the smallest network takes that comes closest to ``limits``, whether within them or not."""
    groups = [_undominated(options) for options in stages]
    # The largest excess over any limit, as a share of it, is minimised by planes.
    columns = [o for options in groups for o in options]
    planes = [(np.array([o.usage[name] / (limit or 1.0) for o in columns]), 0.0) for name, limit in limits.items()]
    found = solve(Program(tuple(map(len, groups)), ()), np.zeros(len(columns)), planes)
    return {} if found is None else dict(_allocation(groups, found[0]).usage)


def _solve(
    groups: Sequence[Sequence[Option]], limits: Mapping[str, float], scale: Mapping[str, float]
) -> tuple[int, ...] | None:
    columns = [o for options in groups for o in options]
    rows = {name: np.array([o.usage[name] for o in columns]) for name in limits}
    shares = sum(row / (scale[name] or 1.0) for name, row in rows.items())
    program = Program(tuple(map(len, groups)), tuple(Row(rows[name], limit) for name, limit in limits.items()))
    found = solve(program, np.asarray(shares))
    if found is None:
        return None
    picked = _allocation(groups, found[0]).usage
    return found[0] if all(picked[n] <= limit * (1 + SLACK) + SLACK for n, limit in limits.items()) else None


def _allocation(groups: Sequence[Sequence[Option]], picks: Sequence[int]) -> Allocation:
    options = tuple(g[p] for g, p in zip(groups, picks, strict=True))
    usage = {name: math.fsum(o.usage[name] for o in options) for name in options[0].usage}
    return Allocation(options, max(o.cycles for o in options), usage)


def _undominated(options: Sequence[Option]) -> list[Option]:
    """Those that no other beats in every resource; of equals, the one with the fewest cycles."""
    kept: list[Option] = []
    for o in sorted(options, key=lambda o: (sum(o.usage.values()), o.cycles, o.pe, o.simd)):
        if not any(all(k.usage[name] <= amount for name, amount in o.usage.items()) for k in kept):
            kept.append(o)
    return kept


def _too_small(groups: Sequence[Sequence[Option]], limits: Mapping[str, float]) -> str:
    closest = least(groups, limits)
    wanted = ", ".join(f"{closest[name]:.0f} {name.replace('_', ' ')} of {limit:g}" for name, limit in limits.items())
    return f"the device is too small: the smallest network that is fast enough takes {wanted}"
