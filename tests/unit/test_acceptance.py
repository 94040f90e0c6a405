"""A change of the graph stays where the compiled network is better by more than noise."""

import numpy as np
import pytest

from qcc_passes.acceptance import better
from qcc_passes.scoring import Score


@pytest.mark.parametrize(
    ("shift", "kl", "expected"), [(-0.8, 1.0, False), (-1.2, 1.0, True), (-1.2, 1.1, False), (1.2, 0.5, False)]
)
def test_better_is_a_standard_error_less_and_no_more_kl(shift: float, kl: float, expected: bool) -> None:
    """``shift`` in standard errors of the difference, sample by sample."""
    noise = np.resize([1.0, -1.0], 50)
    before = Score(1.0, 0.1, None, np.full(50, 5.0))
    after = Score(kl, 0.1, None, 5.0 + noise + shift * noise.std() / np.sqrt(49))
    assert better(after, before) == expected


def test_what_changes_nothing_is_not_better() -> None:
    score = Score(1.0, 0.1, None, np.ones(8))
    assert not better(score, score)
