"""AdaRound (Nagel et al., arXiv:2004.10568): learning which of its two neighbours each weight is rounded to.

Each code is floor(w / s) + h(v), where the rectified sigmoid h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1) is driven to
0 or 1 by the penalty sum(1 - |2 h - 1|^beta), beta falling from 20 to 2. The layer's output error enters through
the Gram matrix of its inputs, so that a step costs one product and no data. Shapes are those of ``rounding``.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc_passes.rounding import Codes, Levels, diagonal, fitted_scale

Array = NDArray[Any]

_STEPS: Final = 500
_STRETCH: Final = 1.2
_WARM_UP: Final = 0.2
"""Share of the steps without the penalty."""
_PENALTY: Final = 0.02
"""Its weight against the error in squared codes."""
_BETA: Final = (20.0, 2.0)
_RATE: Final = 0.02
_DECAY: Final = (0.9, 0.999)
"""Adam's step, and the decay of its moments (Kingma and Ba, arXiv:1412.6980)."""


def adaround(weights: Array, plain: Codes, gram: Array, levels: Levels, *, refit: bool) -> Codes:
    """Codes next to the weights at the scales of ``plain``, by gradient descent on ``gram``; then scale refit."""
    unit_step = plain.scale[..., None] * levels.unit
    real = np.clip(weights / unit_step, levels.low, levels.high)
    low = np.minimum(np.floor(real), levels.high - 1)
    weighed = gram / np.maximum(diagonal(gram).mean(axis=-1), 1e-30)[..., None, None]
    wanted = weights / unit_step - low
    v = -np.log(_STRETCH / (np.clip(real - low, 0.0, 1.0) + (_STRETCH - 1) / 2) - 1)
    mean, square = np.zeros_like(v), np.zeros_like(v)
    for step in range(_STEPS):
        sigmoid = 1 / (1 + np.exp(-v))
        h = np.clip(_STRETCH * sigmoid - (_STRETCH - 1) / 2, 0, 1)
        slope = 2 * (((h - wanted) * levels.unit) @ weighed) * levels.unit
        if (done := (step / _STEPS - _WARM_UP) / (1 - _WARM_UP)) > 0:
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 + np.cos(np.pi * done)) / 2
            away = 2 * h - 1
            slope -= _PENALTY * 2 * beta * np.sign(away) * np.abs(away) ** (beta - 1)
        slope *= _STRETCH * sigmoid * (1 - sigmoid) * ((h > 0) & (h < 1))
        mean += (1 - _DECAY[0]) * (slope - mean)
        square += (1 - _DECAY[1]) * (slope * slope - square)
        corrected = [m / (1 - d ** (step + 1)) for m, d in zip((mean, square), _DECAY, strict=True)]
        v -= _RATE * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    codes = (low + (v > 0)) * levels.unit
    return Codes(codes, fitted_scale(weights, codes, plain.scale, gram) if refit else plain.scale)
