"""Measuring activations on calibration data."""

from dataclasses import replace
from typing import ClassVar

from pydantic import Field

from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.calibrate_cache import cache_path, restore, store
from qcc_passes.calibrate_stream import Observations, observe
from qcc_passes.calibrate_weigh import weigh
from qcc_passes.facts import Ranges
from qcc_passes.observers import ObserverName, make_observer


class Calibrate(Pass):
    """Measure the distribution of every activation on calibration data, in fp32.

    ``method`` picks a range from a distribution: ``mse`` (least squared quantization error, both
    ends searched), ``minmax``, ``percentile`` (keeps ``percentile`` per cent), ``entropy`` (least
    information lost). For ``mse`` each element counts by what its error does to the outputs,
    measured on ``weighted`` samples or more by one backward pass each; 0 lets all count alike. ``samples``
    limits how many calibration samples are used.
    """

    name: ClassVar[str] = "calibrate"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (Ranges,)

    method: ObserverName = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    samples: int | None = Field(default=None, gt=0)
    weighted: int = Field(default=32, ge=0)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph as it is; the facts are put into ``ctx``. Raises ConfigError, PassError."""
        data = ctx.facts.get(CalibrationData)
        images = min(data.samples, self.samples or data.samples)
        weighted = min(images, self.weighted) if self.method == "mse" else 0
        seen = self._cached(graph, images, weighted, ctx)
        ctx.facts.put(Ranges(seen.histograms, seen.weighted, make_observer(self.method, self.percentile)))
        return graph

    def _cached(self, graph: Graph, images: int, weighted: int, ctx: PassContext) -> Observations:
        if ctx.cache is None:
            return self._measure(graph, images, weighted, ctx)
        path = cache_path(ctx.cache, graph, ctx.facts.get(CalibrationData), images, weighted, ctx.seed)
        if (known := restore(path)) is not None:
            ctx.log.info("calibration of %d images taken from %s", known.images, path.name)
            return known
        seen = self._measure(graph, images, weighted, ctx)
        try:
            store(path, seen)
        except OSError as e:
            ctx.log.warning("calibration could not be cached: %s", e)
        return seen

    def _measure(self, graph: Graph, images: int, weighted: int, ctx: PassContext) -> Observations:
        seen = observe(graph, images, ctx)
        return replace(seen, weighted=weigh(graph, weighted, seen.histograms, ctx)) if weighted else seen
