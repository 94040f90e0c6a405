"""The choice of foldings: equal to trying everything, and clear where nothing fits."""

import itertools
import random

import pytest

from qcc.errors import BudgetError
from qcc_targets.fpga.allocate import Option, fastest, smallest

Stages = list[list[Option]]


def instance(seed: int) -> tuple[Stages, dict[str, float]]:
    draw = random.Random(seed)
    stages = []
    for _ in range(draw.randint(1, 4)):
        work = draw.randint(20, 400)
        options = []
        for pe, simd in itertools.product((1, 2, 4), (1, 3)):
            lanes = pe * simd
            usage = {"luts": 10.0 * lanes + draw.randint(0, 30), "dsps": float(draw.choice([0, lanes]))}
            options.append(Option(pe, simd, -(-work // lanes), usage))
        stages.append(options)
    return stages, {"luts": float(draw.randint(30, 500)), "dsps": float(draw.randint(0, 30))}


def everything(stages: Stages, limits: dict[str, float]) -> list[tuple[int, float]]:
    """Cycles and sum of shares of every network within the limits."""
    found = []
    for options in itertools.product(*stages):
        used = {name: sum(o.usage[name] for o in options) for name in limits}
        if all(used[name] <= limit for name, limit in limits.items()):
            shares = sum(used[name] / (limit or 1.0) for name, limit in limits.items())
            found.append((max(o.cycles for o in options), shares))
    return found


def shares(usage: dict[str, float], limits: dict[str, float]) -> float:
    return sum(usage[name] / (limit or 1.0) for name, limit in limits.items())


@pytest.mark.parametrize("seed", range(40))
def test_fastest_and_smallest_equal_brute_force(seed: int) -> None:
    stages, limits = instance(seed)
    fitting = everything(stages, limits)
    if not fitting:
        with pytest.raises(BudgetError, match="too small: the smallest network"):
            fastest(stages, limits)
        return
    best = fastest(stages, limits)
    cycles = min(c for c, _ in fitting)
    assert best.cycles == cycles
    assert shares(dict(best.usage), limits) == pytest.approx(min(s for c, s in fitting if c == cycles))
    slower = smallest(stages, 2 * cycles, limits)
    assert slower.cycles <= 2 * cycles
    assert shares(dict(slower.usage), limits) == pytest.approx(min(s for c, s in fitting if c <= 2 * cycles))


def test_too_many_frames_name_the_fastest() -> None:
    stages, _ = instance(1)
    floor = max(min(o.cycles for o in options) for options in stages)
    with pytest.raises(BudgetError, match=f"the fastest takes {floor}"):
        smallest(stages, floor - 1, {"luts": 1e6, "dsps": 1e6})


def test_too_small_a_device_names_what_it_would_take() -> None:
    stages = [[Option(1, 1, 10, {"luts": 100.0, "dsps": 2.0}), Option(1, 1, 10, {"luts": 300.0, "dsps": 0.0})]]
    assert fastest(stages, {"luts": 300.0, "dsps": 0.0}).usage == {"luts": 300.0, "dsps": 0.0}
    with pytest.raises(BudgetError, match="takes 300 luts of 200, 0 dsps of 0"):
        fastest(stages, {"luts": 200.0, "dsps": 0.0})


def test_the_same_choice_every_time() -> None:
    stages, limits = instance(7)
    roomy = {name: 10 * limit + 100 for name, limit in limits.items()}
    assert len({fastest(stages, roomy).options[0].pe for _ in range(3)}) == 1
    assert fastest(stages, roomy) == fastest([list(reversed(options)) for options in stages], roomy)
