"""Rearrange channels for weights whose blocks share exponents, where the compiled network gains by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.ir.graph import Graph, Op, Stage, constants
from qcc.ir.layout import Blocks
from qcc.ir.types import Dyadic, Quant
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.acceptance import Court
from qcc_passes.channel_groups import ChannelGroups, arriving, channel_groups
from qcc_passes.channel_orders import reordered
from qcc_passes.facts import Ranges, WeightBlocks
from qcc_passes.layers import LAYER_KINDS, groups_of
from qcc_passes.levels import block_error
from qcc_passes.moments import input_moments
from qcc_passes.rearrange_channels import By, ChannelOrders, RearrangeChannels
from qcc_passes.rounding import diagonal
from qcc_passes.samples import elements, parts
from qcc_passes.scoring import JudgingShare, ScoredBy, compiled_by

Array = NDArray[Any]

_RUN: Final = 64 << 20
"""Bytes of activations that one run holds."""
_POSITIONS: Final = 4096
"""Places of each layer's output that are looked at, over all samples."""


class RearrangeBlocks(RearrangeChannels):
    """Order the channels of free classes so that blocks of them, as weights read them, share exponents well.

    Blocks have ``block`` channels and exponents of ``exponent_bits`` bits, as with those options of ``quantize``, which
    then takes them from here, as passes that count what weights take do; the weights compared have ``bits`` bits.
    Channels are ordered by cost as in ``rearrange-channels`` (K-sort); a class takes its order only
    where the error falls that rounding to nearest on the best exponents leaves in the outputs of the layers that read
    it, each relative to its output, inputs being those of ``samples`` calibration samples.

    That is a proxy: weights are rounded otherwise, and layers make up for those before them. So both networks are
    compiled, on all but ``held_out`` of the calibration data, and channels stay where they are unless on the rest
    the rearranged one's KL to fp32 is no more, and that of softened outputs less by a standard error.
    """

    name: ClassVar[str] = "rearrange-blocks"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (CalibrationData, Ranges)
    gives: ClassVar[tuple[type, ...]] = (ChannelOrders, WeightBlocks)

    by: By = "reading"
    block: int = Field(default=32, ge=4, le=512)
    exponent_bits: int = Field(default=2, ge=1, le=3)
    bits: int = Field(default=4, ge=2, le=7)
    rearrange: bool = Field(default=True, description="false: blocks are those of the channels' own order")
    held_out: JudgingShare = 0.4
    scored_by: ScoredBy = Field(
        default_factory=compiled_by,
        min_length=1,
        description="passes that make the networks that are compared, and their options, of which weights have "
        "`bits` where quantize gives none. The default pipeline names its own",
    )

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph, rearranged where it pays. Raises ConfigError where the data do not fit."""
        ctx.facts.put(WeightBlocks(Blocks(self.block, self.exponent_bits)))
        groups = ctx.analyses(channel_groups, graph)
        if not self.rearrange:
            ctx.facts.put(ChannelOrders(tuple((c.channels, c.channels) for c in groups.free)))
            return graph
        costs = self._costs(graph, groups, ctx)
        readers = self._readers(graph, ctx)
        taken: dict[int, int] = {}
        errors = {o.result.name: self._error(o, w, groups, taken) for o, w in readers}
        orders = []
        for c in groups.free:
            order = self._order(c, costs)
            trial = taken | dict(zip(c.channels, order, strict=True))
            carriers = {name for name, _ in c.axes}
            changed = [(o, w) for o, w in readers if o.operands[0].name in carriers]
            fresh = {o.result.name: self._error(o, w, groups, trial) for o, w in changed}
            accepted = sum(fresh.values()) < sum(errors[name] for name in fresh)
            if accepted:
                taken, errors = trial, errors | fresh
            orders.append((c.channels, order if accepted else c.channels))
        done = ChannelOrders(tuple(orders))
        moved = reordered(graph, groups, taken)
        if done.moved and not self._pays(graph, moved, ctx):
            done, moved = ChannelOrders(tuple((seats, seats) for seats, _ in orders)), graph
        ctx.facts.put(done)
        ctx.log.info("%s: %d of %d channels moved", self.name, done.moved, done.report()["channels"])
        return moved

    def _pays(self, graph: Graph, moved: Graph, ctx: PassContext) -> bool:
        """Whether ``moved`` is better than ``graph`` on held-out data once both are compiled."""
        bits = {"weight_bits": self.bits}
        scored_by = {n: bits | options if n == "quantize" else options for n, options in self.scored_by.items()}
        return Court.of(graph, ctx, scored_by, self.held_out).prefers(moved, graph, self.name, ctx)

    def _readers(self, graph: Graph, ctx: PassContext) -> list[tuple[Op, tuple[Array, Array]]]:
        """Layers whose weights have blocks, with the weights [O, C, taps] and the mean square of their inputs."""
        arrays = constants(graph)
        chosen = [
            o
            for o in graph.ops
            if o.kind in LAYER_KINDS
            and o.operands[1].name in arrays
            and groups_of(o) == 1
            and 2 * o.operands[1].type.shape[1] >= self.block
        ]
        if not chosen:
            return []
        batches = parts(graph, ctx.facts.get(CalibrationData), self.samples, _RUN, 4 * elements(graph))
        seen = input_moments(graph, chosen, batches, max(1, _POSITIONS // self.samples), ctx)
        found = []
        for o in chosen:
            weights = arrays[o.operands[1].name].astype(np.float64)
            square = diagonal(seen[o.result.name].own)[0].astype(np.float64) / seen[o.result.name].count
            outputs, channels = weights.shape[:2]
            found.append((o, (weights.reshape(outputs, channels, -1), square.reshape(channels, -1))))
        return found

    def _error(self, o: Op, known: tuple[Array, Array], groups: ChannelGroups, order: Mapping[int, int]) -> float:
        """What rounding leaves of the output of ``o``, relative to it, with channels in ``order``."""
        weights, square = known
        if (columns := arriving(groups, order, o.operands[0])) is not None:
            weights, square = weights[:, columns], square[columns]
        rows = len(weights)
        grid = Quant(self.bits, True, (Dyadic(1, 0),) * rows, axis=0, layout=Blocks(self.block, self.exponent_bits))
        energy = float((np.square(weights) * square).sum()) or 1.0
        flat = weights.reshape(1, rows, -1)
        return block_error(flat, square.reshape(1, -1), grid, weights.shape) / energy
