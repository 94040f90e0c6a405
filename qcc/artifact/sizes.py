"""What the weights of each layer take in an artifact."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from qcc.ir.graph import Graph
from qcc.ir.packing import packed_size, stored_bits
from qcc.ir.types import Const

LAYERS: Final = ("iconv2d", "idense")


@dataclass(frozen=True, slots=True)
class LayerSize:
    """The weights of one convolution or dense layer: ``bits`` per code, and the ``bytes`` that they are stored in.

    Weights of 16 elements or fewer stand in the graph's text and take these bytes nowhere.
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    bits: int
    bytes: int

    def describe(self) -> dict[str, Any]:
        """This size as plain data, for a JSON report."""
        return asdict(self)


def layer_sizes(graph: Graph) -> tuple[LayerSize, ...]:
    """The size of every layer with constant weights, in the order of the graph (stage INTEGER)."""
    consts = {o.result.name: a for o in graph.ops for a in o.attrs.values() if isinstance(a, Const)}
    widths = stored_bits(graph)
    found = []
    for o in graph.ops:
        if o.kind not in LAYERS or o.operands[1].name not in consts:
            continue
        const = consts[o.operands[1].name]
        bits = widths.get(const, 8 * const.array.itemsize)
        size = packed_size(const.array.size, bits)
        found.append(LayerSize(o.result.name, o.kind, const.array.shape, bits, size))
    return tuple(found)
