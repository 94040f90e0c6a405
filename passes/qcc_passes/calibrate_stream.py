"""Streaming calibration data through a probe, batch by batch: memory does not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import PassError
from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc.verify.ort import OrtModel
from qcc_passes.calibrate_probe import Probe, batch_size, probe
from qcc_passes.histogram import Histogram
from qcc_passes.samples import fixed_batch

Array = NDArray[Any]

_SAMPLES_PER_VALUE = 1 << 20
_SAMPLES_PER_IMAGE = 1 << 11
"""At least so many elements of a value are counted per image, and over all images about ``_SAMPLES_PER_VALUE``."""


@dataclass(frozen=True, slots=True)
class Observations:
    """What calibration measures, by value name; see ``qcc_passes.facts`` for the meanings."""

    histograms: Mapping[str, Histogram]
    weighted: Mapping[str, Histogram]
    images: int


def observe(graph: Graph, images: int, ctx: PassContext) -> Observations:
    """Run the first ``images`` calibration samples through the FLOAT ``graph`` in fp32; nothing is weighted yet.

    Raises ConfigError where the data do not fit the graph's inputs, and PassError naming the first
    value that becomes infinite or not a number.
    """
    data = ctx.facts.get(CalibrationData)
    data.check(graph)
    probed = probe(graph, max(_SAMPLES_PER_IMAGE, _SAMPLES_PER_VALUE // max(images, 1)))
    model = OrtModel(export_onnx(probed.graph), threads=ctx.threads)
    collector = _Collector(probed)
    size = batch_size(graph)
    fixed = fixed_batch(graph) is not None
    if fixed and images < size:
        raise PassError(f"the model takes {size} samples at once, but only {images} are there to calibrate on")
    whole = images - images % size if fixed else images
    for batch in data.batches(size, whole):
        feeds = {v.name: np.ascontiguousarray(batch[v.name], v.type.numpy) for v in graph.inputs}
        collector.add(model.run(feeds))
        ctx.progress("calibrate", collector.images, whole)
    return collector.finish()


class _Collector:
    def __init__(self, probed: Probe) -> None:
        self._probe = probed
        self._histograms = {name: Histogram() for name in probed.samples}
        self.images = 0

    def add(self, statistics: Mapping[str, Array]) -> None:
        for name, output in self._probe.samples.items():
            low, high = self._extremes(name, statistics)
            self._histograms[name].add(statistics[output])
            self._histograms[name].widen(low, high)
        self.images += len(statistics[next(iter(self._probe.samples.values()))])

    def finish(self) -> Observations:
        return Observations(self._histograms, {}, self.images)

    def _extremes(self, name: str, statistics: Mapping[str, Array]) -> tuple[float, float]:
        high = float(statistics[self._probe.highs[name]].max())
        low = -float(statistics[self._probe.lows[name]].max()) if name in self._probe.lows else min(high, 0.0)
        if not (math.isfinite(high) and math.isfinite(low)):
            raise PassError(f"%{name} is not finite on the calibration data: check the model and the preprocessing")
        return low, high
