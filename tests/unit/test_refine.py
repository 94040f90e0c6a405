"""Local search: better by the true error, within budgets, within its number of tries."""

import numpy as np

from qcc_passes.assignment import Choice, Group, assign, total
from qcc_passes.refine import refine


def groups(count: int) -> list[Group]:
    def choices(gain: float) -> tuple[Choice, ...]:
        return tuple(Choice(b, 8, gain * 4.0**-b, {"bits": float(b)}) for b in (2, 4, 6))

    return [Group(f"g{i}", choices(i + 1.0)) for i in range(count)]


def test_it_finds_what_the_model_misses() -> None:
    some = groups(4)
    form = np.diag([c.sensitivity for g in some for c in g.choices])
    start = assign(some, {"bits": 16.0}, form).picks
    truth = {0: 90.0, 1: 1.0, 2: 1.0, 3: 1.0}

    def error(picks: tuple[int, ...]) -> float:
        bits = [g.choices[p].weight_bits for g, p in zip(some, picks, strict=True)]
        return sum(truth[i] * 2.0**-b for i, b in enumerate(bits))

    found = refine(some, start, form, {"bits": 16.0}, error, 200)
    assert total(some, found, "bits") <= 16.0
    assert error(found) < error(start)
    assert found[0] == 2


def test_tries_are_not_exceeded() -> None:
    some = groups(5)
    form = np.diag([c.sensitivity for g in some for c in g.choices])
    calls = 0

    def error(picks: tuple[int, ...]) -> float:
        nonlocal calls
        calls += 1
        return float(calls)

    start = (1, 1, 1, 1, 1)
    assert refine(some, start, form, {"bits": 24.0}, error, 7) == start
    assert calls == 7


def test_moves_keep_the_bits_of_activations() -> None:
    choices = tuple(Choice(w, a, 1.0 / (w * a), {"bits": float(w)}) for w in (4, 8) for a in (4, 8))
    site = Group("s", (Choice(0, 4, 1.0, {"bits": 0.0}), Choice(0, 8, 0.0, {"bits": 0.0})), "s")
    some = [Group("l", choices, "s"), site]
    form = np.diag([c.sensitivity for g in some for c in g.choices])
    found = refine(some, (0, 0), form, {"bits": 8.0}, lambda picks: -float(picks[0]), 20)
    assert found == (2, 0)
