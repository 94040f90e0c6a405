"""Interleaved rounds of several engines, with caches warm or emptied."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.passmgr.context import Progress

BLOCK_SECONDS: Final = 0.02
"""How long one engine runs before the next one has its turn: long against the clock, short against drift."""

PAUSE_SECONDS: Final = 0.01
"""Rest between turns: some engines' threads spin on for a while after a call."""

_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_UNKNOWN_CACHE: Final = 64 << 20
_MOST_EVICTED: Final = 512 << 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds per call over the rounds; the quartiles are those of the rounds."""

    median: float
    low: float
    """Lower quartile."""
    high: float
    """Upper quartile."""
    best: float


def measure(
    engines: Mapping[str, Callable[[], object]], rounds: int, *, cold: bool = False, progress: Progress | None = None
) -> dict[str, Timing]:
    """Time every engine in every round, in turns that start elsewhere each round, so that drift hits all alike.

    Warm, an engine's turn is a block of calls after one that is not counted. ``cold``, it is one call
    after all caches were filled with something else: weights come from memory.
    """
    calls = {name: 1 if cold else _calls_per_block(engine) for name, engine in engines.items()}
    evict = _Evictor() if cold else None
    samples: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for r in range(rounds):
        shift = r % len(names)
        for name in names[shift:] + names[:shift]:
            time.sleep(PAUSE_SECONDS)
            if evict is None:
                engines[name]()
            else:
                evict()
            samples[name].append(_block(engines[name], calls[name]))
        if progress is not None:
            progress("cold" if cold else "warm", r + 1, rounds)
    return {name: _timing(seconds) for name, seconds in samples.items()}


def _calls_per_block(engine: Callable[[], object]) -> int:
    """Calls that fill a block, after a first one that warms up."""
    engine()
    return max(1, int(BLOCK_SECONDS / max(_block(engine, 1), 1e-7)))


def _block(engine: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        engine()
    return (time.perf_counter() - start) / calls


def _timing(seconds: Sequence[float]) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (seconds[0],) * 3
    return Timing(median, low, high, min(seconds))


class _Evictor:
    """Fills the caches of the processor, the last level included, with other bytes."""

    def __init__(self) -> None:
        self._room: NDArray[Any] = np.zeros(min(2 * largest_cache(), _MOST_EVICTED) // 8, np.int64)

    def __call__(self) -> None:
        self._room += 1


def largest_cache(folder: Path = _CACHES) -> int:
    """Bytes of the processor's largest cache, as Linux tells; a guess where it does not."""
    texts = [path.read_text().strip() for path in sorted(folder.glob("index*/size"))]
    found = [re.fullmatch(r"(\d+)([KMG]?)", text) for text in texts]
    return max((int(m[1]) * _UNITS[m[2]] for m in found if m), default=_UNKNOWN_CACHE)
