"""Rounding a layer's weights on the grid that they are to lie on: its scales and exponents are fitted here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.layout import Blocks, Widths
from qcc.ir.types import Dyadic, Quant
from qcc_passes.rounding import Codes, Levels, Solver, damped, diagonal, gptq_and_descent, output_error, round_rows

Array = NDArray[Any]

_FACTORS: Final = np.linspace(0.4, 1.1, 29)
"""Of the least scale that clips nothing; with exponents, more than an octave holds all that differ."""


def round_on(
    weights: Array, gram: Array, quant: Quant, shape: tuple[int, ...], damping: float, solve: Solver = gptq_and_descent
) -> tuple[Array, Quant]:
    """Weights [groups, rows, K] near ``weights`` for inputs of moment ``gram`` [groups, K, K], and their grid.

    ``quant`` says what kind of grid; scales and exponents are fitted anew. ``shape`` [O, C, ...] is that of the
    layer's weights. Rounding is greedy, so that finer grids may end above coarser ones: exponents are used in those
    rows whose output error falls by them, or in none where all rows have one scale.
    """
    best = _rounded(weights, gram, quant, shape, damping, solve)
    if isinstance(quant.layout, Blocks):
        plain = _rounded(weights, gram, replace(quant, layout=None), shape, damping, solve)
        steady = damped(gram, damping)
        errors, least = (output_error(weights, codes.weights, steady) for codes in (best, plain))
        worse = errors > least if quant.axis is not None else np.full(errors.shape, errors.sum() > least.sum())
        best = Codes(np.where(worse[..., None], plain.codes, best.codes), np.where(worse, plain.scale, best.scale))
    kept = best.scale.reshape(-1)[: len(quant.scale)]
    made = Quant(quant.bits, True, tuple(map(Dyadic.of, kept)), axis=quant.axis, layout=quant.layout)
    return best.weights, made


def _rounded(weights: Array, gram: Array, quant: Quant, shape: tuple[int, ...], damping: float, solve: Solver) -> Codes:
    """Codes on a grid like ``quant``, and scales that float32 holds."""
    levels = _plain_levels(quant, weights.shape)
    scale = None
    if quant.axis is None or isinstance(quant.layout, Blocks):
        importance = diagonal(damped(gram, damping))[..., None, :]
        scale, levels = _fitted(weights, importance, levels, quant, shape)
    best = round_rows(weights, gram, levels, damping, scale, refit=quant.axis is not None, solve=solve)
    return Codes(best.codes, best.scale.astype(np.float32).astype(np.float64))


def block_error(weights: Array, importance: Array, quant: Quant, shape: tuple[int, ...]) -> float:
    """The weighted squared error that rounding to nearest leaves on the best scales and exponents.

    ``importance`` [groups, K] weighs the columns of ``weights`` [groups, rows, K].
    """
    scale, levels = _fitted(weights, importance[..., None, :], _plain_levels(quant, weights.shape), quant, shape)
    return float(_errors(weights, scale, levels, importance[..., None, :]).sum())


def _plain_levels(quant: Quant, shape: tuple[int, ...]) -> Levels:
    """The levels of ``quant`` for weights of ``shape`` [groups, rows, K], without exponents."""
    if isinstance(quant.layout, Widths):
        return Levels.of(quant.layout.per_index().reshape(*shape[:2], 1))
    return Levels.of(quant.bits)


def _fitted(
    weights: Array, importance: Array, levels: Levels, quant: Quant, shape: tuple[int, ...]
) -> tuple[Array, Levels]:
    """Scales [groups, rows], all equal where ``quant`` has one, and levels with exponents: least weighted error."""
    blocks = quant.layout if isinstance(quant.layout, Blocks) else None
    top = blocks.top(quant.bits) if blocks else 0
    full = np.abs(weights / levels.high).max(axis=-1) / 2.0**top
    if quant.axis is None:
        full = np.full_like(full, full.max())
    full = np.maximum(full, 1e-30)
    members = _members(blocks, shape) if blocks else None
    best, least, units = full, np.full(full.shape, np.inf), np.ones(weights.shape)
    for factor in _FACTORS:
        scale = full * factor
        tried = [Levels(levels.low, levels.high, np.full((), 2.0**e)) for e in range(top + 1)]
        errors = np.stack([_errors(weights, scale, each, importance) for each in tried])
        unit = np.ones(weights.shape)
        if members is not None:
            by_block = np.stack([np.add.reduceat(e[..., members[0]], members[1], axis=-1) for e in errors])
            chosen = by_block.argmin(axis=0)
            unit = 2.0 ** chosen[..., members[2]]
            error = by_block.min(axis=0).sum(axis=-1)
        else:
            error = errors[0].sum(axis=-1)
        better = error < least if quant.axis is not None else np.full(error.shape, error.sum() < least.sum())
        best, least = np.where(better, scale, best), np.where(better, error, least)
        units = np.where(better[..., None], unit, units)
    return best, Levels(levels.low, levels.high, units)


def _errors(weights: Array, scale: Array, levels: Levels, importance: Array) -> Array:
    """The weighted squared error of every weight that rounding to the nearest level makes."""
    codes = levels.nearest(weights / scale[..., None])
    found: Array = np.square(weights - codes * scale[..., None]) * importance
    return found


def _members(blocks: Blocks, shape: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The columns of a row of weights [C, ...] by block, where each block begins there, and the block of each."""
    channels, taps = shape[1], int(np.prod(shape[2:], dtype=int))
    block = (np.arange(channels)[:, None] // blocks.size * taps + np.arange(taps)).reshape(-1)
    order = np.argsort(block, kind="stable")
    return order, np.searchsorted(block[order], np.arange(block.max() + 1)), block
