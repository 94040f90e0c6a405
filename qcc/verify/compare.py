"""How far two executions are apart: signal-to-noise, cosine, agreement, divergence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError

Array = NDArray[Any]


def sqnr_db(reference: Array, test: Array) -> float:
    """Signal-to-quantization-noise ratio 10 log10(sum r^2 / sum (r - t)^2) in decibels.

    Infinite when the arrays are equal. Raises VerifyError when the shapes differ.
    """
    r, t = _pair(reference, test)
    noise = float(np.square(r - t).sum())
    return ratio_db(float(np.square(r).sum()), noise)


def ratio_db(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two sums of squares; infinite without noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def cosine(reference: Array, test: Array) -> float:
    """Cosine of the angle between the flattened arrays; 1 for two zero vectors, 0 if one is zero."""
    r, t = _pair(reference, test)
    norms = float(np.linalg.norm(r) * np.linalg.norm(t))
    if norms == 0:
        return float(not r.any() and not t.any())
    return float(r.reshape(-1) @ t.reshape(-1)) / norms


def agreement(reference: Array, test: Array) -> float:
    """Share of rows whose greatest element, over the last axis, is at the same index."""
    r, t = _pair(reference, test)
    return float(np.mean(r.argmax(axis=-1) == t.argmax(axis=-1)))


def top1(logits: Array, labels: Array) -> float:
    """Share of samples whose greatest logit is at the label; logits [samples, ..., classes], labels [samples]."""
    guess = logits.reshape(len(logits), -1).argmax(axis=1)
    if guess.shape != labels.shape:
        raise VerifyError(f"labels {list(labels.shape)} do not fit logits {list(logits.shape)}")
    return float(np.mean(guess == labels))


def kl_divergence(reference: Array, test: Array) -> float:
    """Mean KL(softmax(reference) || softmax(test)) over the last axis, in nats."""
    r, t = _pair(reference, test)
    log_p, log_q = _log_softmax(r), _log_softmax(t)
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)))


def differing(reference: Array, test: Array) -> int:
    """How many elements differ; all of them when shape or element type do."""
    if reference.shape != test.shape or reference.dtype != test.dtype:
        return max(reference.size, test.size, 1)
    return int(np.count_nonzero(reference != test))


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _pair(reference: Array, test: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if reference.shape != test.shape:
        raise VerifyError(f"cannot compare shapes {list(reference.shape)} and {list(test.shape)}")
    return reference.astype(np.float64), test.astype(np.float64)
