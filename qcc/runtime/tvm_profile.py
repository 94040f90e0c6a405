"""How long each step of an artifact for the CPU takes, hot and inside the network, beside what the machine can do."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.store import Artifact
from qcc.errors import ArtifactError
from qcc.runtime.tvm_backend import FOLDER, TvmBackend
from qcc.runtime.tvm_network import Network

REPORT: Final = f"{FOLDER}/kernels.json"
BACKEND: Final = "tvm"
_REPEATS: Final = 10
"""Runs of a step in a row that count as hot."""
_QUANTILE: Final = 0.25
"""Of the rounds: what other processes take shows less than in their median."""
_COPIED: Final = 256 << 10
"""Bytes whose copying shows the bandwidth of the second-level cache."""


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call of the network: what it computes, and its times in seconds, a lower quartile.

    ``hot`` is its time when it runs many times in a row, ``inside`` when the network runs as usual.
    """

    op: str
    result: str
    kernel: str
    operations: int
    bytes: int
    hot: float
    inside: float

    @property
    def gops(self) -> float:
        """Billions of operations per second, hot."""
        return self.operations / self.hot / 1e9 if self.hot else 0.0


@dataclass(frozen=True, slots=True)
class Profile:
    """All steps in order, and the machine's limits, measured in the same rounds.

    ``peak`` is operations per second of the instruction that the kernels multiply with, 0 where there
    is none; ``bandwidth`` bytes per second that a copy within the second-level cache reads and writes.
    """

    isa: str
    steps: tuple[Step, ...]
    peak: float
    bandwidth: float

    @property
    def hot(self) -> float:
        """Seconds of all steps, each hot."""
        return sum(s.hot for s in self.steps)

    @property
    def inside(self) -> float:
        """Seconds of one run of the network."""
        return sum(s.inside for s in self.steps)

    def roofline(self, step: Step) -> float | None:
        """The share of what peak and bandwidth allow that a step reaches, hot; None for unknown peaks."""
        if not self.peak or not step.hot:
            return None
        return max(step.operations / self.peak, step.bytes / self.bandwidth) / step.hot


def profile(artifact: Artifact, *, isa: str | None = None, rounds: int = 20) -> Profile:
    """Run the artifact's network step by step on random codes.

    Raises ArtifactError where it is no artifact of the backend ``tvm``, or its library cannot measure itself.
    """
    manifest = artifact.manifest
    if manifest.backend != BACKEND or REPORT not in artifact.files:
        raise ArtifactError(
            f"only artifacts of the target 'cpu' can be profiled; this one is for '{manifest.target.name}'"
        )
    network = TvmBackend(manifest, artifact.files, 1, isa=isa).network
    report = json.loads(artifact.files[REPORT].read_text())[network.level.isa]
    inputs = {a.name: _random_codes(a.shape, a.dtype) for a in network.program.inputs}
    outputs = {a.name: np.zeros(a.shape, a.dtype) for a in network.program.outputs}
    hot, inside, peaks, copies = [], [], [], []
    for _ in range(rounds):
        ticks, seconds = _timed(network, inputs, outputs, len(report), _REPEATS)
        tick = seconds / ticks.sum()
        hot.append(ticks * tick / _REPEATS)
        inside.append(_timed(network, inputs, outputs, len(report), 1)[0] * tick)
        stamps, operations = network.peak()
        peaks.append(operations / (stamps * tick) if stamps else 0.0)
        copies.append(_bandwidth())
    low = np.quantile(hot, _QUANTILE, axis=0), np.quantile(inside, _QUANTILE, axis=0)
    return Profile(
        network.level.isa,
        tuple(_step(row, h, i) for row, h, i in zip(report, *low, strict=True)),
        float(np.median(peaks)),
        float(np.median(copies)),
    )


def _step(row: Mapping[str, Any], hot: float, inside: float) -> Step:
    known = {name: row[name] for name in ("op", "result", "kernel", "operations", "bytes")}
    return Step(**known, hot=float(hot), inside=float(inside))


def _timed(
    network: Network, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]], steps: int, repeats: int
) -> tuple[NDArray[np.int64], float]:
    start = time.perf_counter()
    ticks = network.profile(inputs, outputs, steps, repeats)
    return ticks, time.perf_counter() - start


def _bandwidth() -> float:
    source, target = np.ones(_COPIED, np.uint8), np.zeros(_COPIED, np.uint8)
    times = 8
    np.copyto(target, source)
    start = time.perf_counter()
    for _ in range(times):
        np.copyto(target, source)
    return 2 * _COPIED * times / (time.perf_counter() - start)


def _random_codes(shape: Sequence[int], dtype: str) -> NDArray[Any]:
    info = np.iinfo(dtype)
    return np.random.default_rng(0).integers(info.min, info.max, shape, dtype, endpoint=True)
