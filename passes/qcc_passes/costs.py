"""What a choice of bits costs on the target: bytes, bit operations, time, memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qcc.ir.graph import Graph, Op, producers
from qcc.ir.layout import Widths
from qcc.ir.packing import Packing
from qcc.passmgr.facts import DeviceCosts
from qcc.passmgr.latency import LatencyTable
from qcc_passes.activations import Site
from qcc_passes.facts import WeightBlocks
from qcc_passes.layers import Layer

PEAK = "peak_memory"
LATENCY = "latency"
_DEFAULT_BITS = 8


@dataclass(frozen=True, slots=True)
class CostModel:
    """Costs of layers' weights and of activation sites at given bits.

    ``size`` is bytes of packed weights, ``bits`` the share in the average bits per weight, both with the exponents that
    blocks of weights share; ``bops`` multiply-accumulates times weight bits times activation bits per sample,
    ``latency`` seconds of the calibrated table where there is one, ``peak_memory@i`` the bytes of activations held
    by operation i.
    A device may count more of its own.
    """

    layers: tuple[Layer, ...]
    reads: Mapping[str, str]
    """The site that each layer reads, where its bits may be chosen."""
    held: Mapping[str, Mapping[str, int]]
    """Elements that each site holds by ``peak_memory@i``; sites of fixed width are under the empty name."""
    latency: LatencyTable | None
    blocks: WeightBlocks
    device: DeviceCosts | None
    ops: Mapping[str, Op]
    """By layer."""
    _known: dict[tuple[str, int, int], Mapping[str, float]] = field(default_factory=dict)
    """What ``device`` has said."""

    @classmethod
    def of(
        cls,
        graph: Graph,
        layers: tuple[Layer, ...],
        sites: Sequence[Site],
        latency: LatencyTable | None,
        blocks: WeightBlocks | None = None,
        device: DeviceCosts | None = None,
    ) -> CostModel:
        """``sites`` are those whose bits may be chosen; ``blocks`` of weights share exponents."""
        owner = {name: site.name for site in sites for name in site.values}
        made_by = producers(graph)
        ops = {layer.name: made_by[layer.name] for layer in layers}
        reads = {name: owner[o.operands[0].name] for name, o in ops.items() if o.operands[0].name in owner}
        return cls(layers, reads, _held(graph, owner), latency, blocks or WeightBlocks(None), device, ops)

    def stored(self, layer: Layer, bits: int | Widths) -> tuple[float, float]:
        """The bytes that a layer's weights take in an artifact, and the bits of each, exponents included."""
        shape = self.ops[layer.name].operands[1].type.shape
        most = bits if isinstance(bits, int) else max(b for _, b in bits.runs)
        how = Packing(most, self.blocks.of(shape, most) if isinstance(bits, int) else bits)
        return float(how.size(shape)), how.average(shape)

    def layer(self, layer: Layer, weight_bits: int, activation_bits: int | None) -> dict[str, float]:
        """The costs of one layer; None stands for an input of the default width."""
        parameters = sum(each.parameters for each in self.layers)
        bits = activation_bits or _DEFAULT_BITS
        size, average = self.stored(layer, weight_bits)
        costs = {
            "size": size,
            "bits": layer.parameters * average / parameters,
            "bops": float(layer.macs * weight_bits * bits),
        }
        if self.latency is not None:
            costs[LATENCY] = self.latency.of(layer.name, weight_bits) + self.latency.overhead / len(self.layers)
        if self.device is not None:
            key = layer.name, weight_bits, bits
            if key not in self._known:
                self._known[key] = self.device.of(self.ops[layer.name], weight_bits, bits)
            costs |= self._known[key]
        return costs

    def site(self, site: str, bits: int) -> dict[str, float]:
        """The costs of one site: memory only."""
        return {name: float(count * _bytes(bits)) for name, count in self.held.get(site, {}).items()}

    def fixed_memory(self) -> dict[str, float]:
        """The memory of activations whose width is not chosen."""
        return self.site("", _DEFAULT_BITS)


def _bytes(bits: int) -> int:
    """Bytes of one stored activation: they are not packed."""
    return math.ceil(bits / 8)


def _held(graph: Graph, owner: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Elements per sample that each owner's values hold while operation i runs.

    A reshape is its operand; every other value lives from the operation that makes it to its last reader.
    """
    same = {o.result.name: o.operands[0].name for o in graph.ops if o.kind == "reshape"}

    def origin(name: str) -> str:
        while name in same:
            name = same[name]
        return name

    sizes = {v.name: math.prod(v.type.shape[1:]) for v in graph.inputs}
    born = dict.fromkeys(sizes, 0)
    last = dict(born)
    for index, o in enumerate(graph.ops):
        if o.kind == "constant":
            continue
        sizes[o.result.name], born[o.result.name] = math.prod(o.result.type.shape[1:]), index
        for name in (o.result.name, *(v.name for v in o.operands)):
            if origin(name) in sizes:
                last[origin(name)] = index
    for v in graph.outputs:
        last[origin(v.name)] = len(graph.ops) - 1
    held: dict[str, dict[str, int]] = {}
    for index, o in enumerate(graph.ops):
        if o.kind in ("constant", "reshape"):
            continue
        for name, size in sizes.items():
            if name == origin(name) and born[name] <= index <= last.get(name, -1):
                places = held.setdefault(owner.get(name, ""), {})
                places[f"{PEAK}@{index}"] = places.get(f"{PEAK}@{index}", 0) + size
    return held
