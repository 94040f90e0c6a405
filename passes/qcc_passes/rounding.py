"""Choosing integer weights that keep a layer's output: GPTQ, coordinate descent, scale refit.

A layer computes W X for inputs X; its output error is tr((W - s Q) G (W - s Q)^T) with the Gram
matrix G = X X^T / samples. Rows are independent, so everything runs on all rows at once; leading
axes count problems of their own, such as the groups of a convolution.
Shapes: weights and codes [..., rows, K], scales [..., rows], G [..., K, K]; all float64, codes integral.
Which integers a code may be is said by ``Levels``: a width, one per row, or with exponents by block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Codes:
    """Integer weights and the scale of each row: a row stands for ``scale * codes``."""

    codes: Array
    scale: Array

    @property
    def weights(self) -> Array:
        dense: Array = self.codes * self.scale[..., None]
        return dense


@dataclass(frozen=True, slots=True)
class Levels:
    """The integers that codes may be: multiples of ``unit`` from ``low * unit`` to ``high * unit``.

    All three broadcast against codes [..., rows, K]; ``low`` and ``high`` do not vary along K.
    """

    low: Array
    high: Array
    unit: Array

    @classmethod
    def of(cls, bits: int | Array, unit: Array | None = None) -> Levels:
        """Signed levels of ``bits`` bits, one width or one per row [..., rows, 1]."""
        half = np.left_shift(1, np.asarray(bits) - 1).astype(np.float64)
        return cls(-half, half - 1, np.ones(()) if unit is None else unit)

    def nearest(self, codes: Array) -> Array:
        """Real ``codes`` [..., rows, K] moved to the nearest level."""
        found: Array = np.clip(np.rint(codes / self.unit), self.low, self.high) * self.unit
        return found

    def columns(self, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
        """``low`` and ``high`` [..., rows], and ``unit`` [..., rows, K], of codes of ``shape``."""
        low, high = (np.broadcast_to(a, (*shape[:-1], 1))[..., 0] for a in (self.low, self.high))
        return low, high, np.broadcast_to(self.unit, shape)


def damped(gram: Array, share: float) -> Array:
    """G plus ``share`` of its mean diagonal on the diagonal: positive definite even for few samples.

    Covariances of inputs that hardly vary are what single precision made of their squares, and may have negative
    eigenvalues beyond ``share``: these are lifted to zero before.
    """
    mean = diagonal(gram).mean(axis=-1)
    added = np.where(mean > 0, share * mean, 1.0)[..., None, None] * np.eye(gram.shape[-1])
    try:
        np.linalg.cholesky(gram + added / 2)
    except np.linalg.LinAlgError:
        least = np.minimum(np.linalg.eigvalsh(gram)[..., 0], 0)
        gram = gram - least[..., None, None] * np.eye(gram.shape[-1])
    result: Array = gram + added
    return result


def diagonal(gram: Array) -> Array:
    """The diagonals [..., K]."""
    return np.diagonal(gram, axis1=-2, axis2=-1)


def output_error(weights: Array, approx: Array, gram: Array) -> Array:
    """Each row's squared output error, [..., rows]."""
    difference = weights - approx
    error: Array = np.einsum("...rk,...rk->...r", difference @ gram, difference)
    return error


def nearest(weights: Array, scale: Array, levels: Levels) -> Codes:
    """Round to the nearest level."""
    return Codes(levels.nearest(weights / scale[..., None]), scale)


def search_scale(weights: Array, importance: Array, levels: Levels, steps: int = 40) -> Array:
    """The scale of each row that, among clipped ranges, minimises the weighted squared rounding error.

    ``importance`` [..., K] weighs the columns: the diagonal of G for the output error, ones for plain MSE.
    """
    high, unit = levels.high, levels.unit
    full = np.maximum((np.abs(weights) / (high * unit)).max(axis=-1), 1e-30)
    best: Array = full.copy()
    least = np.full(full.shape, np.inf)
    for factor in np.linspace(0.3, 1.1, steps):
        scale = full * factor
        error = (np.square(weights - nearest(weights, scale, levels).weights) * importance[..., None, :]).sum(axis=-1)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def gptq(weights: Array, scale: Array, gram: Array, levels: Levels) -> Codes:
    """Round column by column, moving each column's error onto the columns still to come.

    Columns run in order of falling diagonal (GPTQ, arXiv:2210.17323, with "act order"): with
    U the upper Cholesky factor of G^-1, e = (w_k - q_k) / U_kk and W[:, k:] -= e U[k, k:].
    ``gram`` must be positive definite.
    """
    low, high, units = levels.columns(weights.shape)
    order = np.argsort(-diagonal(gram), axis=-1, kind="stable")
    rows, columns = order[..., None, :], order[..., :, None]
    inverse = np.linalg.inv(np.take_along_axis(np.take_along_axis(gram, columns, -2), rows, -1))
    upper = np.linalg.cholesky((inverse + inverse.swapaxes(-1, -2)) / 2).swapaxes(-1, -2)
    left, units = (np.take_along_axis(a, rows, -1) for a in (weights, units))
    codes = np.zeros_like(left)
    for start in range(0, left.shape[-1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[-1])
        errors = np.zeros((*left.shape[:-1], stop - start))
        for k in range(start, stop):
            unit = units[..., k]
            codes[..., k] = np.clip(np.rint(left[..., k] / (scale * unit)), low, high) * unit
            errors[..., k - start] = (left[..., k] - scale * codes[..., k]) / upper[..., None, k, k]
            left[..., k + 1 : stop] -= errors[..., k - start, None] * upper[..., None, k, k + 1 : stop]
        left[..., stop:] -= errors @ upper[..., start:stop, stop:]
    natural = np.empty_like(codes)
    np.put_along_axis(natural, rows, codes, -1)
    return Codes(natural, scale)


def descend(weights: Array, start: Codes, gram: Array, levels: Levels, sweeps: int = 4, *, refit: bool = True) -> Codes:
    """Coordinate descent over the integers, refitting the scales after each sweep, unless they are to stay.

    Each coordinate takes its exact optimum given all others, so the output error never rises;
    the scale of a row is its least-squares fit w G q / q G q. Stops when nothing changes.
    """
    low, high, units = levels.columns(weights.shape)
    codes, scale = start.codes.copy(), start.scale.copy()
    curvature = np.maximum(diagonal(gram), 1e-30)[..., None, :]
    for _ in range(sweeps):
        changed = False
        pull = (weights - codes * scale[..., None]) @ gram
        for first in range(0, codes.shape[-1], _BLOCK):
            block = slice(first, min(first + _BLOCK, codes.shape[-1]))
            local, near = gram[..., block, block], pull[..., block]
            moved = np.zeros_like(near)
            for k in range(block.stop - first):
                unit = units[..., first + k]
                free = near[..., k] / (scale * curvature[..., first + k]) + codes[..., first + k]
                step = np.clip(np.rint(free / unit), low, high) * unit - codes[..., first + k]
                if step.any():
                    codes[..., first + k] += step
                    moved[..., k] = step
                    near -= (scale * step)[..., None] * local[..., None, k, :]
                    changed = True
            pull[..., block.stop :] -= (moved * scale[..., None]) @ gram[..., block, block.stop :]
        if refit:
            scale = fitted_scale(weights, codes, scale, gram)
        if not changed:
            break
    return Codes(codes, scale)


def fitted_scale(weights: Array, codes: Array, scale: Array, gram: Array) -> Array:
    """The least-squares scale of each row; the old one where codes vanish or it would turn negative."""
    projected = codes @ gram
    energy = np.einsum("...rk,...rk->...r", projected, codes)
    fit = np.einsum("...rk,...rk->...r", projected, weights) / np.where(energy > 0, energy, 1)
    return np.where((energy > 0) & (fit > 0), fit, scale)


class Solver(Protocol):
    """Better codes than those rounded to nearest, ``plain``; scales change with ``refit`` only."""

    def __call__(self, weights: Array, plain: Codes, gram: Array, levels: Levels, *, refit: bool) -> Codes:
        """``gram`` is positive definite."""
        ...


def gptq_and_descent(weights: Array, plain: Codes, gram: Array, levels: Levels, *, refit: bool) -> Codes:
    """GPTQ at the scales of ``plain``, then coordinate descent."""
    return descend(weights, gptq(weights, plain.scale, gram, levels), gram, levels, refit=refit)


def round_rows(
    weights: Array,
    gram: Array,
    levels: Levels,
    damping: float = 0.01,
    scale: Array | None = None,
    *,
    refit: bool = True,
    solve: Solver = gptq_and_descent,
) -> Codes:
    """Scale search, then ``solve``; never worse per row than round to nearest.

    ``gram`` may be singular; ``damping`` is the share of its mean diagonal that is added. ``scale`` [..., rows]
    stands in for the search, and stays as it is without ``refit``.
    """
    steady = damped(gram, damping)
    found = search_scale(weights, diagonal(steady), levels) if scale is None else scale
    plain = nearest(weights, found, levels)
    best = solve(weights, plain, steady, levels, refit=refit)
    worse = output_error(weights, best.weights, steady) > output_error(weights, plain.weights, steady)
    codes = np.where(worse[..., None], plain.codes, best.codes)
    return Codes(codes, np.where(worse, plain.scale, best.scale))


def compensated(weights: Array, gram: Array, cross: Array, damping: float = 0.01) -> Array:
    """The real weights that, on quantized inputs Y, come closest to W X on fp32 inputs X.

    With G = Y Y^T and ``cross`` = X Y^T, both per sample: argmin ||W X - V Y||^2 + d ||V - W||^2.
    """
    ridge = damped(gram, damping) - gram
    wanted = (weights @ (cross + ridge)).swapaxes(-1, -2)
    solved: Array = np.linalg.solve(gram + ridge, wanted).swapaxes(-1, -2)
    return solved
