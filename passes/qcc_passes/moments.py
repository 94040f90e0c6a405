"""Second moments of what layers multiply their weights with: all that rounding a layer needs to know of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph, Op
from qcc.passmgr.context import PassContext
from qcc.verify.blas import one_thread
from qcc.verify.ort import OrtModel
from qcc.verify.windows import Window
from qcc_passes.layers import groups_of

Array = NDArray[Any]

_USUAL: Final = 4.0
"""Squared differences, in medians, above which a place counts less."""


@dataclass(slots=True)
class Drift:
    """How fp32 columns x differ from quantized ones y, by d = x − y: Σ d yᵀ [G, K, K], Σ d [G, K]."""

    cross: Array
    mean: Array


@dataclass(slots=True)
class Moments:
    """Sums over input columns y [G, K] of a layer of G groups: ``own`` = Σ y yᵀ [G, K, K], ``mean`` = Σ y [G, K].

    ``drift`` is None where y are the columns that the wanted output was computed from.
    """

    count: float
    own: Array
    mean: Array
    drift: Drift | None = None

    @classmethod
    def of(cls, columns: Array, exact: Array | None = None, weights: Array | None = None) -> Moments:
        """Those of ``columns`` [G, K, n], and of ``exact`` ones at the same places where these differ.

        ``weights`` [n] say how much each place counts, all alike if there are none.
        """
        counted = columns if weights is None else columns * weights
        count = columns.shape[-1] if weights is None else float(weights.sum())
        moments = cls(count, counted @ columns.swapaxes(-1, -2), counted.sum(axis=-1))
        if exact is not None:
            d = exact - columns
            weighed = d if weights is None else d * weights
            moments.drift = Drift(weighed @ columns.swapaxes(-1, -2), weighed.sum(axis=-1))
        return moments

    def add(self, other: Moments) -> None:
        """Take in further columns of the same layer."""
        self.count += other.count
        self.own += other.own
        self.mean += other.mean
        if self.drift is not None and other.drift is not None:
            self.drift.cross += other.drift.cross
            self.drift.mean += other.drift.mean

    def centred(self) -> tuple[Array, Array]:
        """Covariances [G, K, K], float64: of y, and of x with y."""
        own = _covariance(self.own, self.mean, self.mean, self.count)
        if self.drift is None:
            return own, own
        return own, own + _covariance(self.drift.cross, self.drift.mean, self.mean, self.count)

    def shift(self, weights: Array, approx: Array) -> Array:
        """The mean of W x − V y [G, rows] for ``weights`` W and ``approx`` V: what a bias can take back."""
        found: Array = np.einsum("grk,gk->gr", weights - approx, self.mean.astype(np.float64))
        if self.drift is not None:
            found += np.einsum("grk,gk->gr", weights, self.drift.mean.astype(np.float64))
        return found / self.count

    def errors(self, weights: Array, approx: Array) -> Array:
        """Σ |W y − V y|² of each row of ``weights`` W and ``approx`` V [G, rows, K], less what a bias can take back."""
        difference = weights - approx
        shift = np.einsum("grk,gk->gr", difference, self.mean.astype(np.float64))
        found: Array = _products(difference, self.own) - np.square(shift) / self.count
        return found

    def energy(self, weights: Array) -> float:
        """Σ |W y|²."""
        return float(_products(weights, self.own).sum())


def _covariance(moment: Array, left: Array, right: Array, count: float) -> Array:
    means = (a.astype(np.float64) / count for a in (left, right))
    found: Array = moment.astype(np.float64) / count - np.einsum("gk,gl->gkl", *means)
    return found


def _products(weights: Array, matrix: Array) -> Array:
    """Of each row w of ``weights``: w M wᵀ, [G, rows]."""
    found: Array = np.einsum("grk,grk->gr", weights @ matrix.astype(np.float64), weights)
    return found


def steady(exact: Array, quantized: Array) -> Array:
    """How much the places of columns [G, K, n] are to count, [n]: less where they differ far more than elsewhere.

    The few places where an activation clips hold most of the squared error, which no weights can take back.
    So where the squared difference is large, the weight is its inverse, as weighted least squares has it.
    """
    square = np.square(exact - quantized).sum(axis=(0, 1))
    usual = _USUAL * float(np.median(square))
    found: Array = usual / np.maximum(square, max(usual, 1e-30)) if usual > 0 else np.ones(len(square))
    return found.astype(np.float32)


def columns(o: Op, x: Array, positions: int, seed: int) -> Array:
    """Input columns [G, K, n] of a conv2d or dense on ``x``, at ``positions`` places per sample, or at all.

    The places depend on ``seed`` alone, so that two inputs of one shape are looked at alike.
    """
    if o.kind == "dense":
        return x.reshape(1, -1, x.shape[-1]).swapaxes(-1, -2)
    window, groups = Window.of(o), groups_of(o)
    rows, cols = window.output(*x.shape[2:])
    rng = np.random.default_rng(seed)
    count = min(positions, rows * cols)
    chosen = np.stack([rng.permutation(rows * cols)[:count] for _ in range(len(x))])
    at = (np.arange(len(x))[:, None], slice(None), chosen // cols, chosen % cols)
    taps = [tap[at] for _, _, tap in window.taps(x)]  # each [N, n, C]
    stacked = np.stack(taps, axis=-1).reshape(len(x) * count, groups, -1)
    return np.ascontiguousarray(stacked.transpose(1, 2, 0))


def input_moments(
    graph: Graph, chosen: Sequence[Op], batches: Iterable[Mapping[str, Array]], positions: int, ctx: PassContext
) -> dict[str, Moments]:
    """Moments of the inputs of the layers ``chosen``, by result name, on ``batches`` of inputs of ``graph``."""
    wanted = dict.fromkeys(o.operands[0].name for o in chosen)
    given = {v.name for v in graph.inputs}
    model = OrtModel(export_onnx(graph, keep=[n for n in wanted if n not in given]), threads=ctx.threads)
    found: dict[str, Moments] = {}
    with one_thread(), ThreadPoolExecutor(ctx.threads) as pool:
        for index, feeds in enumerate(batches):
            values = {**feeds, **model.run(feeds)}
            seed = ctx.seed + index
            inputs = [values[o.operands[0].name] for o in chosen]
            sums = pool.map(lambda o, x, seed=seed: Moments.of(columns(o, x, positions, seed)), chosen, inputs)
            for o, moments in zip(chosen, sums, strict=True):
                if o.result.name in found:
                    found[o.result.name].add(moments)
                else:
                    found[o.result.name] = moments
    return found
