"""The bit-assignment program against brute force and against HAWQ-V3's published solutions."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hawqv3 import hawq_groups, layer_bits

from qcc.errors import ConfigError
from qcc_passes.assignment import Choice, Group, assign, total


def random_groups(rng: np.random.Generator, layers: int, options: int) -> list[Group]:
    bits = (2, 4, 8)[:options]
    groups = []
    for layer in range(layers):
        size, macs, fall = rng.uniform(0.1, 10), rng.uniform(0.1, 10), rng.uniform(2, 6)
        choices = tuple(
            Choice(b, b, float(rng.uniform(0.5, 1.5) * fall ** (-b)), {"size": size * b, "bops": macs * b * b})
            for b in bits
        )
        groups.append(Group(f"layer{layer}", choices))
    return groups


def random_budgets(rng: np.random.Generator, groups: list[Group]) -> dict[str, float]:
    budgets = {}
    for metric in ("size", "bops"):
        least = total(groups, [0] * len(groups), metric)
        most = total(groups, [len(g.choices) - 1 for g in groups], metric)
        budgets[metric] = float(least + rng.uniform(0, 1) * (most - least))
    return budgets


def brute_force(groups: list[Group], budgets: dict[str, float], gram: np.ndarray[Any, Any] | None) -> float:
    starts = np.cumsum([0, *(len(g.choices) for g in groups)])[:-1]
    best = np.inf
    for picks in itertools.product(*(range(len(g.choices)) for g in groups)):
        if any(total(groups, picks, m) > limit * (1 + 1e-9) for m, limit in budgets.items()):
            continue
        columns = starts + np.array(picks)
        if gram is not None:
            value = float(gram[np.ix_(columns, columns)].sum())
        else:
            value = sum(g.choices[p].sensitivity for g, p in zip(groups, picks, strict=True))
        best = min(best, value)
    return best


@pytest.mark.parametrize("seed", range(20))
def test_linear_program_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(10):
        groups = random_groups(rng, int(rng.integers(1, 8)), int(rng.integers(2, 4)))
        budgets = random_budgets(rng, groups)
        found = assign(groups, budgets)
        assert found.objective == pytest.approx(brute_force(groups, budgets, None), rel=1e-9)
        assert found.gap < 1e-6
        assert all(found.used[m] <= limit * (1 + 1e-9) for m, limit in budgets.items())


def test_twelve_layers_equal_brute_force() -> None:
    rng = np.random.default_rng(12)
    groups = random_groups(rng, 12, 2)
    budgets = random_budgets(rng, groups)
    assert assign(groups, budgets).objective == pytest.approx(brute_force(groups, budgets, None), rel=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_pairwise_program_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = random_groups(rng, int(rng.integers(2, 6)), 3)
    budgets = random_budgets(rng, groups)
    scale = np.array([c.sensitivity for g in groups for c in g.choices])
    factor = rng.normal(size=(len(scale), 4)) * np.sqrt(scale)[:, None]
    gram = factor @ factor.T
    found = assign(groups, budgets, gram)
    assert found.objective == pytest.approx(brute_force(groups, budgets, gram), rel=1e-6)
    assert found.gap < 1e-6


def test_equal_programs_have_equal_solutions() -> None:
    groups = [Group(f"g{i}", (Choice(4, 4, 1.0, {"size": 1.0}), Choice(8, 8, 0.0, {"size": 2.0}))) for i in range(6)]
    assert assign(groups, {"size": 9}) == assign(groups, {"size": 9})


def test_budget_out_of_reach_names_the_tightest() -> None:
    groups = random_groups(np.random.default_rng(0), 3, 2)
    least = total(groups, [0, 0, 0], "size")
    with pytest.raises(ConfigError, match=f"the tightest reachable is {least:g}"):
        assign(groups, {"size": least / 2})


def test_contradicting_budgets_are_named() -> None:
    groups = [
        Group("a", (Choice(4, 8, 1.0, {"size": 1.0, "latency": 9.0}), Choice(8, 8, 0.5, {"size": 9.0, "latency": 1.0})))
    ]
    with pytest.raises(ConfigError, match=r"contradict each other .*size can reach 9 within the others"):
        assign(groups, {"size": 2.0, "latency": 2.0})


def test_unknown_metric_is_named() -> None:
    groups = random_groups(np.random.default_rng(0), 1, 2)
    with pytest.raises(ConfigError, match="unknown budget metric 'energy'; known: bops, size, drop"):
        assign(groups, {"energy": 1.0})


def test_hawq_v3_resnet18_is_reproduced(data_dir: Path) -> None:
    net = json.loads((data_dir / "hawqv3_ilp.json").read_text())["resnet18"]
    groups, members = hawq_groups(net)
    assert len(net["solutions"]) == 9
    for name, solution in net["solutions"].items():
        found = assign(groups, {name.split("_")[0]: solution["limit"]})
        assert layer_bits(found, groups, members) == solution["bits_published"], name


def test_hawq_v3_resnet50_is_solved_to_optimality(data_dir: Path) -> None:
    net = json.loads((data_dir / "hawqv3_ilp.json").read_text())["resnet50"]
    groups, _ = hawq_groups(net)
    for metric in ("modelsize", "bops", "latency"):
        least, most = (total(groups, [p] * len(groups), metric) for p in (0, 1))
        assert assign(groups, {metric: (least + most) / 2}).gap < 1e-9


def test_least_size_within_a_bound_on_the_drop_equals_brute_force() -> None:
    rng = np.random.default_rng(5)
    for pairwise in (False, True):
        groups = random_groups(rng, 5, 3)
        scale = np.array([c.sensitivity for g in groups for c in g.choices])
        factor = rng.normal(size=(len(scale), 4)) * np.sqrt(scale)[:, None]
        gram = factor @ factor.T if pairwise else None
        limit = 3 * assign(groups, {}, gram).objective
        found = assign(groups, {"drop": limit}, gram, minimize="size")
        assert found.used["drop"] <= limit * (1 + 1e-9)
        starts = np.cumsum([0, *(len(g.choices) for g in groups)])[:-1]
        best = np.inf
        for picks in itertools.product(*(range(len(g.choices)) for g in groups)):
            columns = starts + np.array(picks)
            value = scale[columns].sum() if gram is None else gram[np.ix_(columns, columns)].sum()
            if value <= limit * (1 + 1e-9):
                best = min(best, total(groups, picks, "size"))
        assert found.objective == pytest.approx(best)


def test_a_drop_out_of_reach_names_the_tightest() -> None:
    groups = [Group("a", (Choice(4, 8, 1.0, {"size": 1.0}), Choice(8, 8, 0.5, {"size": 2.0})))]
    for minimize in ("drop", "size"):
        with pytest.raises(ConfigError, match=r"has drop <= 0\.75; the tightest reachable is 1"):
            assign(groups, {"size": 1.5, "drop": 0.75}, minimize=minimize)


def test_groups_that_read_one_site_agree_on_its_bits() -> None:
    def layer(name: str, gain: float) -> Group:
        choices = (Choice(8, a, gain / a, {"bops": 8.0 * a}) for a in (4, 8))
        return Group(name, tuple(choices), "x")

    site = Group("x", tuple(Choice(0, a, 0.0, {"bops": 0.0}) for a in (4, 8)), "x")
    groups = [layer("a", 9.0), layer("b", 0.1), site]
    for budget, bits in ((64.0, 4), (96.0, 4), (128.0, 8)):
        found = assign(groups, {"bops": budget})
        assert {g.choices[p].activation_bits for g, p in zip(groups, found.picks, strict=True)} == {bits}


def test_a_metric_by_place_is_the_largest_of_its_sums() -> None:
    groups = [
        Group("a", (Choice(0, 4, 1.0, {"peak@1": 4.0}), Choice(0, 8, 0.0, {"peak@1": 8.0}))),
        Group(
            "b", (Choice(0, 4, 1.1, {"peak@1": 4.0, "peak@2": 4.0}), Choice(0, 8, 0.0, {"peak@1": 8.0, "peak@2": 8.0}))
        ),
    ]
    assert assign(groups, {"peak": 16.0}).used["peak"] == 16.0
    assert assign(groups, {"peak": 12.0}).picks == (0, 1)
    with pytest.raises(ConfigError, match="the tightest reachable is 8"):
        assign(groups, {"peak": 7.0})


def test_the_solver_prints_nothing() -> None:
    """What a command prints as JSON must be nothing else."""
    program = "import numpy as np; from qcc_passes.milp import Program, solve; solve(Program((2,), ()), np.ones(2))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
