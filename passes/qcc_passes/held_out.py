"""What a layer gives on held-out samples, as later layers see it: after its clamp, within its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Op
from qcc_passes.moments import Moments, steady

Array = NDArray[Any]


class Judge(Protocol):
    """Squared output errors of a layer whose weights are replaced."""

    def errors(self, weights: Array, approx: Array) -> Array:
        """Those of each row of ``approx`` [G, rows, K] in place of ``weights``, summed over samples, [G, rows]."""
        ...

    def energy(self, weights: Array) -> float:
        """The squared output itself, over all rows."""
        ...


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Input columns [G, K, n] of one layer, fp32 and quantized ones at the same places, and its ``bias`` [G, rows].

    ``weights`` [n] say how much each place counts. An output beyond ``low`` or ``high`` counts as these: outliers that
    a clamp stops, or the grid, are nobody's concern, and would outweigh all else. ``fit`` says how the bias moves along
    with the weights.
    """

    exact: Array
    quantized: Array
    weights: Array
    bias: Array
    low: float
    high: float
    fit: Moments

    @classmethod
    def of(cls, o: Op, exact: Array, quantized: Array, bias: Array, fit: Moments) -> HeldOut:
        """Of a conv2d or dense."""
        low, high = limits(o)
        return cls(exact, quantized, steady(exact, quantized), bias.reshape(len(exact), -1), low, high, fit)

    def errors(self, weights: Array, approx: Array) -> Array:
        """Those of each row, [G, rows]."""
        shifted = self.bias + self.fit.shift(weights, approx)
        error = self._output(weights, self.exact, self.bias) - self._output(approx, self.quantized, shifted)
        found: Array = np.square(error, dtype=np.float64) @ self.weights.astype(np.float64)
        return found

    def energy(self, weights: Array) -> float:
        """Over all rows."""
        output = self._output(weights, self.exact, self.bias)
        return float((np.square(output, dtype=np.float64) @ self.weights.astype(np.float64)).sum())

    def _output(self, weights: Array, columns: Array, bias: Array) -> Array:
        found: Array = weights.astype(np.float32) @ columns + bias[..., None].astype(np.float32)
        return np.clip(found, self.low, self.high, out=found)


def limits(o: Op) -> tuple[float, float]:
    """What the results of a layer lie between, infinite where a residual is yet to be added to the product."""
    if len(o.operands) > 3:
        return -math.inf, math.inf
    low, high = o.float_attr("lo", -math.inf), o.float_attr("hi", math.inf)
    if (grid := o.result.type.quant) is not None and grid.axis is None:
        least, most = grid.span(0)
        low, high = max(low, float(least)), min(high, float(most))
    return low, high
