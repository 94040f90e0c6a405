"""Residual streams on a wider grid than the convolutions that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Final

from pydantic import Field

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Op, Stage, Value, fresh_name, op, users
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc_passes.facts import BitPlan, Ranges

_RESIDUAL_SLOT: Final = 3
"""The operand of conv2d and dense that is added to their sums."""

_WIDE_READERS: Final = frozenset({"add", "sub", "reduce_mean", "reduce_sum", "avg_pool2d"})
"""Operations that read a value without multiplying or moving it: a wide one costs them nothing."""

_MAKERS: Final = frozenset({"conv2d", "dense", "add", "sub", "mul", "clip"})
"""Operations whose result may have any width."""


class WidenResiduals(Pass):
    """Store what residual additions read in ``bits`` bits; convolutions read a narrower copy of it.

    Goes before ``quantize``, which rounds such a stream to ``bits`` bits and its copies to the bits
    that the stream would have had (those of a measured ``BitPlan``, else its default).
    """

    name: ClassVar[str] = "widen-residuals"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT
    needs: ClassVar[tuple[type, ...]] = (Ranges,)
    gives: ClassVar[tuple[type, ...]] = (BitPlan,)

    bits: int = Field(default=8, ge=3, le=16)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The graph with copies. Raises ConfigError where the target has no activations of so many bits."""
        if self.bits not in ctx.capabilities.activation_bits:
            choices = ", ".join(map(str, sorted(ctx.capabilities.activation_bits)))
            raise ConfigError(f"widen-residuals: the target has no {self.bits}-bit activations; set bits to {choices}")
        streams = residual_streams(graph)
        graph, copies = _with_copies(graph, streams)
        ranges, plan = ctx.facts.get(Ranges), ctx.facts.find(BitPlan) or BitPlan({}, {})
        ctx.facts.put(_with_ranges(ranges, copies))
        planned = dict(plan.activation_bits)
        planned |= {copy: planned[name] for name, copy in copies.items() if name in planned}
        planned |= dict.fromkeys((v.name for v in streams), self.bits)
        ctx.facts.put(replace(plan, activation_bits=planned))
        ctx.log.info("%d residual streams of %d bits, %d copied", len(streams), self.bits, len(copies))
        return graph


def residual_streams(graph: Graph) -> tuple[Value, ...]:
    """The values that an addition of two activations reads, in order of definition."""
    constant = {o.result.name for o in graph.ops if o.kind == "constant"}
    added = {v.name for o in graph.ops for v in _addends(o) if len(set(_moving(o, constant))) > 1}
    return tuple(o.result for o in graph.ops if o.result.name in added and o.kind in _MAKERS)


def _addends(o: Op) -> tuple[Value, ...]:
    if o.kind in ("add", "sub"):
        return o.operands
    return o.operands[_RESIDUAL_SLOT:] if o.kind in ("conv2d", "dense") else ()


def _moving(o: Op, constant: set[str]) -> list[str]:
    return [v.name for v in o.operands if v.name not in constant]


def _with_copies(graph: Graph, streams: tuple[Value, ...]) -> tuple[Graph, dict[str, str]]:
    """``graph`` with a copy of each stream for those readers that multiply or move it; copies by stream."""
    table, taken = users(graph), {v.name for o in graph.ops for v in o.results} | {v.name for v in graph.inputs}
    copies: dict[str, str] = {}
    for v in streams:
        if any(_narrow_slots(o, v.name) for o in table[v.name]):
            copies[v.name] = fresh_name(f"{v.name}.narrow", taken)
            taken.add(copies[v.name])
    ops: list[Op] = []
    for o in graph.ops:
        narrow = {slot for name in copies for slot in _narrow_slots(o, name)}
        operands = [replace(v, name=copies[v.name]) if i in narrow else v for i, v in enumerate(o.operands)]
        ops.append(replace(o, operands=tuple(operands)))
        if (name := o.result.name) in copies:
            ops.append(op("clip", [o.result], [replace(o.result, name=copies[name])]))
    return replace(graph, ops=tuple(ops)), copies


def _narrow_slots(o: Op, name: str) -> list[int]:
    """The operands of ``o`` that are the value ``name`` and should be narrow."""
    slots = [slot for slot, v in enumerate(o.operands) if v.name == name]
    if o.kind in _WIDE_READERS:
        return []
    return [s for s in slots if s < _RESIDUAL_SLOT] if o.kind in ("conv2d", "dense") else slots


def _with_ranges(ranges: Ranges, copies: Mapping[str, str]) -> Ranges:
    """``ranges`` in which copies have the distribution of what they copy."""
    histograms, weighted = (
        {**known, **{copy: known[name] for name, copy in copies.items() if name in known}}
        for known in (ranges.histograms, ranges.weighted)
    )
    return replace(ranges, histograms=histograms, weighted=weighted)
