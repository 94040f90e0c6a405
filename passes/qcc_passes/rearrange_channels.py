"""Rearrange channels by a measured cost, at no cost at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from qcc.errors import PassError
from qcc.ir.graph import Graph, Stage
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.channel_costs import Costs, activation_costs, weight_costs
from qcc_passes.channel_groups import ChannelClass, ChannelGroups, channel_groups
from qcc_passes.channel_orders import reordered

By = Literal["weights", "norms", "reading", "activations"]


@dataclass(frozen=True, slots=True)
class ChannelOrders:
    """What a rearrangement did: per free class its channels by seat, in the order that they took."""

    orders: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def moved(self) -> int:
        """How many channels changed their seat."""
        return sum(s != t for seats, taken in self.orders for s, t in zip(seats, taken, strict=True))

    def report(self) -> dict[str, Any]:
        """Numbers of free classes, of their channels, and of those that moved."""
        return {"classes": len(self.orders), "channels": sum(len(s) for s, _ in self.orders), "moved": self.moved}


class RearrangeChannels(Pass):
    """Order the channels of every class that is free by a measured cost.

    Weights, biases, per-channel constants and scales move along, so the function stays the same up to
    the rounding of reordered sums, and no operation is added. ``by`` is what a channel's cost is:
    the largest weight that makes it (``weights``), their Euclidean norm (``norms``), the largest
    weight that reads it (``reading``), or the largest magnitude that it takes on the first
    ``samples`` calibration samples (``activations``). Where several layers make or read a class,
    each counts in relation to its largest. Costs rise from channel to channel, or fall
    (``descending``); equal ones keep their order. Raises PassError where activations are asked for
    and there are no data.
    """

    name: ClassVar[str] = "rearrange-channels"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[tuple[type, ...]] = (ChannelOrders,)

    by: By = "weights"
    descending: bool = False
    samples: int = Field(default=32, gt=0)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        groups = ctx.analyses(channel_groups, graph)
        costs = self._costs(graph, groups, ctx)
        orders = tuple((c.channels, self._order(c, costs)) for c in groups.free)
        done = ChannelOrders(orders)
        ctx.facts.put(done)
        ctx.log.debug("%d of %d channels moved in %d free classes", done.moved, done.report()["channels"], len(orders))
        taken = {seat: channel for seats, order in orders for seat, channel in zip(seats, order, strict=True)}
        return reordered(graph, groups, taken)

    def _costs(self, graph: Graph, groups: ChannelGroups, ctx: PassContext) -> Costs:
        if self.by != "activations":
            return weight_costs(graph, groups, self.by)
        data = ctx.facts.find(CalibrationData)
        if data is None:
            raise PassError(f"{self.name}: ordering by activations needs calibration data; give some, or another 'by'")
        return activation_costs(graph, groups, data, self.samples)

    def _order(self, members: ChannelClass, costs: Mapping[int, float]) -> tuple[int, ...]:
        found = np.array([costs.get(c, 0.0) for c in members.channels])
        by_cost = np.argsort(-found if self.descending else found, kind="stable")
        return tuple(members.channels[i] for i in by_cost.tolist())


class RearrangeQuantizedChannels(RearrangeChannels):
    """Order channels as ``rearrange-channels`` does, once grids are chosen: not one integer output changes.

    Grids and codes move with their channels, and sums of integers do not depend on their order.
    """

    name: ClassVar[str] = "rearrange-quantized-channels"
    accepts: ClassVar[Stage] = Stage.QUANTIZED
    yields: ClassVar[Stage] = Stage.QUANTIZED
