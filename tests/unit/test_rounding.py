"""Weight rounding: each step lowers the output error, and small problems reach the true optimum."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcc_passes.adaround import adaround
from qcc_passes.moments import Moments
from qcc_passes.rounding import (
    Codes,
    Levels,
    compensated,
    damped,
    descend,
    gptq,
    nearest,
    output_error,
    round_rows,
    search_scale,
)

Array = NDArray[Any]


def problem(rows: int, columns: int, seed: int, samples: int = 400) -> tuple[Array, Array]:
    """Random weights and the Gram matrix of correlated inputs."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(columns, columns)) / columns**0.5 + np.eye(columns) * 0.3
    x = mixing @ rng.normal(size=(columns, samples)) + rng.normal(size=(columns, 1))
    return rng.normal(size=(rows, columns)), x @ x.T / samples


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 200))
@settings(max_examples=25, deadline=None)
def test_rounding_never_loses_to_nearest(seed: int, bits: int, columns: int) -> None:
    weights, gram = problem(6, columns, seed)
    steady = damped(gram, 0.01)
    plain = nearest(weights, search_scale(weights, np.diag(steady), Levels.of(bits)), Levels.of(bits))
    best = round_rows(weights, gram, Levels.of(bits))
    assert (output_error(weights, best.weights, steady) <= output_error(weights, plain.weights, steady) + 1e-12).all()
    top = 1 << (bits - 1)
    assert best.codes.min() >= -top
    assert best.codes.max() < top
    assert (best.codes == np.rint(best.codes)).all()
    assert (best.scale > 0).all()


def test_gptq_beats_nearest_on_correlated_inputs() -> None:
    weights, gram = problem(64, 300, 0)
    gram = damped(gram, 0.01)
    scale = search_scale(weights, np.diag(gram), Levels.of(4))
    plain = output_error(weights, nearest(weights, scale, Levels.of(4)).weights, gram).sum()
    assert output_error(weights, gptq(weights, scale, gram, Levels.of(4)).weights, gram).sum() < plain / 2


def test_descent_lowers_every_row_and_ends_at_a_fixed_point() -> None:
    weights, gram = problem(16, 200, 1)
    gram = damped(gram, 0.01)
    start = nearest(weights, search_scale(weights, np.diag(gram), Levels.of(3)), Levels.of(3))
    end = descend(weights, start, gram, Levels.of(3), sweeps=100)
    before, after = (output_error(weights, c.weights, gram) for c in (start, end))
    assert (after <= before + 1e-12).all()
    assert after.sum() < before.sum() / 2
    assert np.array_equal(descend(weights, end, gram, Levels.of(3), sweeps=1).codes, end.codes)


@pytest.mark.parametrize("bits", [2, 4])
def test_adaround_picks_the_better_neighbours(bits: int) -> None:
    weights, gram = problem(16, 60, 3)
    gram = damped(gram, 0.01)
    levels = Levels.of(bits)
    plain = nearest(weights, search_scale(weights, np.diag(gram), levels), levels)
    found = adaround(weights, plain, gram, levels, refit=True)
    before, after = (output_error(weights, c.weights, gram).sum() for c in (plain, found))
    assert after < 0.8 * before
    assert np.array_equal(levels.nearest(found.codes), found.codes)
    inside = np.clip(weights / plain.scale[:, None], levels.low, levels.high)
    assert (np.abs(found.codes - inside) <= 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_no_single_code_can_be_improved(seed: int) -> None:
    weights, gram = problem(1, 4, seed)
    gram = damped(gram, 0.01)
    scale = np.abs(weights).max(axis=1) / 1.5
    end = descend(weights, nearest(weights, scale, Levels.of(2)), gram, Levels.of(2), sweeps=50)
    least = output_error(weights, end.weights, gram)[0]
    for column, code in itertools.product(range(4), range(-2, 2)):
        codes = end.codes.copy()
        codes[0, column] = code
        assert output_error(weights, Codes(codes, end.scale).weights, gram)[0] >= least - 1e-12


def test_compensation_undoes_a_known_distortion_of_the_inputs() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 5000))
    y = 0.8 * x
    weights = rng.normal(size=(3, 8))
    found = compensated(weights, y @ y.T / 5000, x @ y.T / 5000, damping=1e-9)
    assert np.allclose(found, weights / 0.8, rtol=1e-6)


def test_constant_zero_inputs_and_weights_are_survived() -> None:
    best = round_rows(np.zeros((2, 5)), np.zeros((5, 5)), Levels.of(4))
    assert np.isfinite(best.scale).all()
    assert (best.codes == 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_inputs_that_hardly_vary_are_survived(seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = np.repeat(rng.uniform(1, 9, (1, 9, 1)).astype(np.float32), 5000, axis=2)
    columns[:, 0, :3] += np.float32(0.01)
    covariance, _ = Moments.of(columns).centred()
    assert np.linalg.eigvalsh(covariance)[0, 0] < 0
    weights = rng.normal(size=(1, 4, 9))
    codes = round_rows(weights, covariance, Levels.of(4))
    assert np.abs(codes.weights - weights).max() < np.abs(weights).max() / 4
