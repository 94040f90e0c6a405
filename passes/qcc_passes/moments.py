"""Second moments of what layers multiply their weights with: all that rounding a layer needs to know of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

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


@dataclass(slots=True)
class Drift:
    """How fp32 columns x differ from quantized ones y, by d = x − y: Σ d dᵀ and Σ d yᵀ [G, K, K], Σ d [G, K]."""

    own: Array
    cross: Array
    mean: Array


@dataclass(slots=True)
class Moments:
    """Sums over input columns y [G, K] of a layer of G groups: ``own`` = Σ y yᵀ [G, K, K], ``mean`` = Σ y [G, K].

    ``drift`` is None where y are the columns that the wanted output was computed from.
    """

    count: int
    own: Array
    mean: Array
    drift: Drift | None = None

    @classmethod
    def of(cls, columns: Array, exact: Array | None = None) -> Moments:
        """Those of ``columns`` [G, K, n], and of ``exact`` ones at the same places where these differ."""
        moments = cls(columns.shape[-1], columns @ columns.swapaxes(-1, -2), columns.sum(axis=-1))
        if exact is not None:
            d = exact - columns
            moments.drift = Drift(d @ d.swapaxes(-1, -2), d @ columns.swapaxes(-1, -2), d.sum(axis=-1))
        return moments

    def add(self, other: Moments) -> None:
        """Take in further columns of the same layer."""
        self.count += other.count
        self.own += other.own
        self.mean += other.mean
        if self.drift is not None and other.drift is not None:
            self.drift.own += other.drift.own
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

    def error(self, weights: Array, approx: Array) -> float:
        """Σ |W x − V y|² for ``weights`` W and ``approx`` V [G, rows, K], less what a bias can take back."""
        difference = weights - approx
        total = self._centred(difference, self.own, difference, self.mean, self.mean)
        if self.drift is not None:
            total += 2 * self._centred(weights, self.drift.cross, difference, self.drift.mean, self.mean)
            total += self._centred(weights, self.drift.own, weights, self.drift.mean, self.drift.mean)
        return total

    def energy(self, weights: Array) -> float:
        """Σ |W y|²."""
        return _product(weights, self.own, weights)

    def _centred(self, left: Array, moment: Array, right: Array, left_mean: Array, right_mean: Array) -> float:
        """tr(L M Rᵀ) of the moment M = Σ l rᵀ less (Σ l)(Σ r)ᵀ / count."""
        shifts = [np.einsum("grk,gk->gr", a, m.astype(np.float64)) for a, m in ((left, left_mean), (right, right_mean))]
        return _product(left, moment, right) - float((shifts[0] * shifts[1]).sum()) / self.count


def _covariance(moment: Array, left: Array, right: Array, count: int) -> Array:
    means = (a.astype(np.float64) / count for a in (left, right))
    found: Array = moment.astype(np.float64) / count - np.einsum("gk,gl->gkl", *means)
    return found


def _product(left: Array, matrix: Array, right: Array) -> float:
    return float(np.einsum("grk,grk->", left @ matrix.astype(np.float64), right))


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
