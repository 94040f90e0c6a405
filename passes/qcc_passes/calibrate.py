"""Measuring activations on calibration data."""

from typing import ClassVar

from pydantic import Field

from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.calibrate_cache import cache_path, restore, store
from qcc_passes.calibrate_stream import Observations, observe
from qcc_passes.facts import ChannelMeans, ChannelRanges, Ranges
from qcc_passes.observers import ObserverName, make_observer


class Calibrate(Pass):
    """Measure the distribution of every activation on calibration data, in fp32.

    ``method`` picks a range from a distribution: ``mse`` (least squared quantization error, both
    ends searched), ``minmax``, ``percentile`` (keeps ``percentile`` per cent), ``entropy`` (least
    information lost). ``samples`` limits how many calibration samples are used.
    """

    name: ClassVar[str] = "calibrate"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData,)
    gives: ClassVar[tuple[type, ...]] = (Ranges, ChannelRanges, ChannelMeans)

    method: ObserverName = "mse"
    percentile: float = Field(default=99.99, gt=50, le=100)
    samples: int | None = Field(default=None, gt=0)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph as it is; the facts are put into ``ctx``. Raises ConfigError, PassError."""
        seen = self._observe(graph, ctx)
        ctx.facts.put(Ranges(seen.histograms, make_observer(self.method, self.percentile)))
        ctx.facts.put(ChannelRanges({name: (seen.lows[name], high) for name, high in seen.highs.items()}))
        ctx.facts.put(ChannelMeans(seen.means, seen.images))
        return graph

    def _observe(self, graph: Graph, ctx: PassContext) -> Observations:
        data = ctx.facts.get(CalibrationData)
        images = min(data.samples, self.samples or data.samples)
        if ctx.cache is None:
            return observe(graph, data, images, ctx.progress)
        path = cache_path(ctx.cache, graph, data, images)
        if (known := restore(path)) is not None:
            ctx.log.info("calibration of %d images taken from %s", known.images, path.name)
            return known
        seen = observe(graph, data, images, ctx.progress)
        try:
            store(path, seen)
        except OSError as e:
            ctx.log.warning("calibration could not be cached: %s", e)
        return seen
