"""What the weights of each layer take in an artifact."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from qcc.ir.graph import Graph
from qcc.ir.packing import Packing, stored
from qcc.ir.types import Const

LAYERS: Final = ("iconv2d", "idense")


@dataclass(frozen=True, slots=True)
class LayerSize:
    """The weights of one convolution or dense layer: ``bits`` per code, and the ``bytes`` that they are stored in.

    ``layout`` says which blocks share exponents, or which channels have which bits, as the graph's text has it;
    ``bits`` are then the average, exponents included. Weights of 16 elements or fewer stand in the graph's text
    and take these bytes nowhere.
    """

    layer: str
    op: str
    shape: tuple[int, ...]
    bits: float
    bytes: int
    layout: str | None = None

    def describe(self) -> dict[str, Any]:
        """This size as plain data, for a JSON report."""
        return asdict(self)


def layer_sizes(graph: Graph) -> tuple[LayerSize, ...]:
    """The size of every layer with constant weights, in the order of the graph (stage INTEGER)."""
    consts = {o.result.name: a for o in graph.ops for a in o.attrs.values() if isinstance(a, Const)}
    packed = stored(graph)
    found = []
    for o in graph.ops:
        if o.kind not in LAYERS or o.operands[1].name not in consts:
            continue
        const = consts[o.operands[1].name]
        shape = const.array.shape
        how = packed.get(const, Packing(8 * const.array.itemsize))
        layout = str(how.layout) if how.layout is not None else None
        bits = how.bits if layout is None else how.average(shape)
        found.append(LayerSize(o.result.name, o.kind, shape, bits, how.size(shape), layout))
    return tuple(found)
