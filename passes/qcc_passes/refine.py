"""Local search on the true error, from an assignment that a program found.

A quadratic model ranks assignments near its optimum only as well as it predicts their KL, and below
4 bits it predicts that within tens of per cent. So the best moves by the model are tried for real.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qcc_passes.assignment import Group, total

_SLACK = 1e-9

Picks = tuple[int, ...]


def refine(
    groups: Sequence[Group],
    start: Picks,
    form: NDArray[np.float64],
    budgets: Mapping[str, float],
    error: Callable[[Picks], float],
    tries: int,
) -> Picks:
    """The picks of least ``error`` within ``budgets`` that ``tries`` evaluations find from ``start``.

    A move takes one layer to a neighbouring width, or one up and another down. First come the moves that
    narrow no layer whose narrowing has failed, in the order of what ``form`` [choices, choices]
    predicts; an improvement is taken at once. Activations keep their bits.
    """
    best, least = start, error(start)
    seen = {start}
    blamed: Counter[int] = Counter()
    for _ in range(tries - 1):
        moves = [picks for picks in _within(groups, best, budgets) if picks not in seen]
        if not moves:
            break
        picks = min(
            moves, key=lambda m: (sum(blamed[i] for i in _narrowed(groups, best, m)), _predicted(groups, form, m))
        )
        seen.add(picks)
        if (value := error(picks)) < least:
            best, least = picks, value
        else:
            blamed.update(_narrowed(groups, best, picks))
    return best


def _within(groups: Sequence[Group], picks: Picks, budgets: Mapping[str, float]) -> Iterator[Picks]:
    """The moves from ``picks`` that stay within the budgets."""
    for moved in _moves(groups, picks):
        if all(total(groups, moved, metric) <= limit * (1 + _SLACK) for metric, limit in budgets.items()):
            yield moved


def _predicted(groups: Sequence[Group], form: NDArray[np.float64], picks: Picks) -> float:
    starts = np.cumsum([0, *(len(g.choices) for g in groups)])[:-1]
    columns = starts + np.array(picks)
    return float(form[np.ix_(columns, columns)].sum())


def _narrowed(groups: Sequence[Group], old: Picks, new: Picks) -> list[int]:
    """The groups that have fewer weight bits in ``new``."""
    return [i for i, g in enumerate(groups) if g.choices[new[i]].weight_bits < g.choices[old[i]].weight_bits]


def _moves(groups: Sequence[Group], picks: Picks) -> Iterator[Picks]:
    steps = [[(i, k) for k in _neighbours(group, picks[i])] for i, group in enumerate(groups)]
    single = [step for some in steps for step in some]
    for i, k in single:
        yield _with(picks, (i, k))
    for a, (i, k) in enumerate(single):
        for j, m in single[a + 1 :]:
            if i != j and _widens(groups[i], picks[i], k) != _widens(groups[j], picks[j], m):
                yield _with(picks, (i, k), (j, m))


def _neighbours(group: Group, pick: int) -> list[int]:
    """Choices of the next narrower and the next wider weights, at the same activation bits."""
    now = group.choices[pick]
    same = [k for k, c in enumerate(group.choices) if c.activation_bits == now.activation_bits and c.weight_bits]
    ordered = sorted(same, key=lambda k: group.choices[k].weight_bits)
    if pick not in ordered:
        return []
    at = ordered.index(pick)
    return [ordered[k] for k in (at - 1, at + 1) if 0 <= k < len(ordered)]


def _widens(group: Group, old: int, new: int) -> bool:
    return group.choices[new].weight_bits > group.choices[old].weight_bits


def _with(picks: Picks, *steps: tuple[int, int]) -> Picks:
    changed = list(picks)
    for group, choice in steps:
        changed[group] = choice
    return tuple(changed)
