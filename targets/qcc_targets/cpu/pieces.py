"""One step as several that may run at once: ranges of samples, of rows, or of output channels.

A kernel takes everything from its views, so that a piece is the same operation on narrower ones: what
lies above and below a range of rows is then not padding but more of the tensor, which is what a
window must read there. Output channels whose weights have widths of their own are pieces in any case, so that
the kernel of each unpacks one width.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Op
from qcc.ir.layout import Widths
from qcc_targets.cpu.cost import operations
from qcc_targets.cpu.demand import WINDOWED
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import ALIGN, Site, View
from qcc_targets.cpu.views import sliced

_LEAST_OPERATIONS: Final = 3 << 20
"""Contractions below this take about as long as two threads take to meet."""

_LEAST_ON_TILES: Final = 12 << 20
"""The same on AMX tiles."""

_LEAST_BYTES: Final = 64 << 10
"""The same for what only moves memory."""

_CHANNELS: Final = 32
"""Ranges of channels begin at multiples of this: kernels compute so many at once."""

_POINTWISE: Final = frozenset({"copy", "ilookup"})
_BATCHED: Final = frozenset({"iconv2d", "idense", "copy", "ilookup", "ilinear", "max_pool2d", "isum_pool2d"})


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a step: its site, and how many bytes further on its inputs and its output begin.

    Views that differ only in where they begin are given as equal, so that pieces can share code.
    """

    site: Site
    inputs: tuple[int, ...]
    output: int


def pieces(site: Site, parts: int, isa: Isa) -> tuple[Piece, ...]:
    """``site`` in up to ``parts`` pieces of about equal work for each width of weights, as far as that gains."""
    found: list[Site] = []
    for one in _by_width(site):
        found += _divided(one, parts) if parts > 1 and _worthwhile(one, isa) else [one]
    first = found[0]
    return tuple(_rebased(one, first) for one in found)


def _by_width(site: Site) -> list[Site]:
    """One site per precision group of a layer's output channels."""
    if site.op.kind not in ("iconv2d", "idense") or (site.op.kind == "iconv2d" and site.op.int_attr("groups") != 1):
        return [site]
    quant = site.op.operands[1].type.quant
    if quant is None or not isinstance(quant.layout, Widths) or site.views[1] is not None:
        return [site]
    axis = 1 if site.op.kind == "iconv2d" else site.output.rank - 1
    edges = np.cumsum([0, *(n for n, _ in quant.layout.runs)]).tolist()
    return [_channels(site, axis, *edge) for edge in itertools.pairwise(edges)]


def _worthwhile(site: Site, isa: Isa) -> bool:
    if site.op.kind in ("iconv2d", "idense"):
        tiled = "amx" in isa and (site.op.kind == "idense" or site.op.int_attr("groups") == 1)
        return operations(site) >= (_LEAST_ON_TILES if tiled else _LEAST_OPERATIONS)
    return site.output.size * site.output.itemsize >= _LEAST_BYTES


def _divided(site: Site, parts: int) -> list[Site]:
    kind, output = site.op.kind, site.output
    views = [v for v in site.views if v is not None]
    if kind in _BATCHED and output.shape[0] % parts == 0 and all(v.shape[0] == output.shape[0] for v in views):
        return [_samples(site, *r) for r in _ranges(output.shape[0], parts, 1)]
    if kind == "idense" or (kind == "iconv2d" and _heavy(site)):
        axis = 1 if kind == "iconv2d" else output.rank - 1
        return [_channels(site, axis, *r) for r in _ranges(output.shape[axis], parts, _CHANNELS)]
    if kind in WINDOWED and output.channels_last:
        return [_rows(site, *r) for r in _ranges(output.height, parts, 1)]
    if kind in _POINTWISE and output.rank == 4 and views and all(v.shape == output.shape for v in views):
        return [_same_rows(site, *r) for r in _ranges(output.shape[2], parts, 1)]
    return [site]


def _heavy(site: Site) -> bool:
    """Whether a convolution's weights, which every range of rows would read, outweigh what it computes on."""
    if site.op.int_attr("groups") != 1 or site.output.channels < 2 * _CHANNELS:
        return False
    return bool(site.array(1).size > site.view(0).size + site.output.size) or site.output.height == 1


def _ranges(size: int, parts: int, unit: int) -> list[tuple[int, int]]:
    """``size`` in up to ``parts`` ranges that begin at multiples of ``unit``."""
    units = -(-size // unit)
    count = min(parts, units)
    edges = [min(size, units * i // count * unit) for i in range(count)]
    return list(zip(edges, [*edges[1:], size], strict=True))


def _samples(site: Site, start: int, stop: int) -> Site:
    return replace(
        site,
        views=tuple(None if v is None else _cut(v, 0, start, stop) for v in site.views),
        output=_cut(site.output, 0, start, stop),
    )


def _channels(site: Site, axis: int, start: int, stop: int) -> Site:
    """Output channels ``start`` to ``stop``; what has one entry for each of them is sliced, the first operand stays."""
    size = site.output.shape[axis]
    arrays: Mapping[str, NDArray[Any]] = {
        name: a[start:stop] if a.ndim and a.shape[0] == size else a for name, a in site.arrays.items()
    }
    rest = (None if v is None else _cut(v, axis, start, stop) for v in site.views[1:])
    output = _cut(site.output, axis, start, stop)
    return replace(
        site, op=_of_channels(site.op, start, stop), views=(site.views[0], *rest), output=output, arrays=arrays
    )


def _of_channels(o: Op, start: int, stop: int) -> Op:
    """``o``, whose weights lie on the grid that some of their output channels have."""
    weight = o.operands[1]
    quant = weight.type.quant
    if quant is None or quant.axis != 0:
        return o
    layout = quant.layout
    bits = quant.bits
    if isinstance(layout, Widths):
        own = layout.per_index()[start:stop]
        bits, layout = int(own.max()), Widths.of(0, own) if len(set(own.tolist())) > 1 else None
    shape = (stop - start, *weight.type.shape[1:])
    made = weight.typed(shape=shape, quant=replace(quant, bits=bits, scale=quant.scale[start:stop], layout=layout))
    return replace(o, operands=(o.operands[0], made, *o.operands[2:]))


def _rows(site: Site, start: int, stop: int) -> Site:
    """Output rows ``start`` to ``stop`` of a windowed operation, whose first operand begins at the first's window."""
    o, x = site.op, site.view(0)
    kernel = o.ints_attr("kernel") if "kernel" in o.attrs else site.array(1).shape[2:]
    stride, dilation, top = o.ints_attr("strides")[0], o.ints_attr("dilations")[0], o.ints_attr("pads")[0]
    first = start * stride
    reach = (stop - start - 1) * stride + (kernel[0] - 1) * dilation + 1 - top
    last = x.height if stop == site.output.height else min(x.height, first + max(1, reach))
    rest = (None if v is None else _cut(v, 2, start, stop) for v in site.views[1:])
    return replace(site, views=(_cut(x, 2, first, last), *rest), output=_cut(site.output, 2, start, stop))


def _same_rows(site: Site, start: int, stop: int) -> Site:
    return replace(
        site,
        views=tuple(None if v is None else _cut(v, 2, start, stop) for v in site.views),
        output=_cut(site.output, 2, start, stop),
    )


def _cut(view: View, axis: int, start: int, stop: int) -> View:
    """A range of ``view`` with its halo, which beside the range is either halo or more of the tensor."""
    return replace(sliced(view, axis, start, stop), halo=view.halo)


def _rebased(site: Site, first: Site) -> Piece:
    """``site`` with views that begin where those of the piece ``first`` do, where alignment allows."""
    old: Sequence[View] = first.inputs
    moved = [_moved(v, f) for v, f in zip(site.inputs, old, strict=True)]
    output, behind = _moved(site.output, first.output)
    fresh = iter(v for v, _ in moved)
    views = tuple(None if v is None else next(fresh) for v in site.views)
    return Piece(replace(site, views=views, output=output), tuple(d for _, d in moved), behind)


def _moved(view: View, first: View) -> tuple[View, int]:
    distance = (view.offset - first.offset) * view.itemsize
    if distance % (view.itemsize if view.external else ALIGN):
        return view, 0
    return replace(view, offset=first.offset), distance
