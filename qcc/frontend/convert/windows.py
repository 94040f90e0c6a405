"""Sliding windows: kernel, strides, dilations and pads of convolutions and pooling, resolved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcc.frontend.emit import Emitter
from qcc.frontend.node import Node, UnsupportedNodeError
from qcc.ir.graph import Value


@dataclass(frozen=True, slots=True)
class Windows:
    """All per spatial axis; 1-D windows have become 2-D ones of height 1."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Top, left, bottom, right."""
        return (*self.begin, *self.end)

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns from a window's first to its last element."""
        (kh, kw), (dh, dw) = self.kernel, self.dilations
        return (dh * (kh - 1) + 1, dw * (kw - 1) + 1)


def spatial_rank(node: Node, x: Value) -> int:
    """1 or 2. Raises UnsupportedNodeError for volumes, ModelError for anything else."""
    rank = x.type.rank - 2
    if rank > 2:
        raise UnsupportedNodeError(f"{rank} spatial axes are not supported", "one and two are")
    if rank < 1:
        raise node.error(f"its input of shape {list(x.type.shape)} has no spatial axis")
    return rank


def as_2d(emit: Emitter, x: Value) -> Value:
    """[N, C, L] as [N, C, 1, L]; four dimensions as they are."""
    return x if x.type.rank == 4 else emit.reshape(x, (*x.type.shape[:2], 1, x.type.shape[2]))


def as_1d(emit: Emitter, y: Value, rank: int) -> Value:
    """The inverse of ``as_2d`` for results of 1-D operations."""
    n, c, _, width = y.type.shape
    return y if rank == 2 else emit.reshape(y, (n, c, width))


def read_windows(node: Node, kernel: Sequence[int], size: Sequence[int]) -> Windows:
    """The windows of ``node`` over an input of spatial ``size``, ``auto_pad`` resolved."""
    rank = len(size)
    strides = _list(node, "strides", rank, 1)
    dilations = _list(node, "dilations", rank, 1)
    if len(kernel) != rank or min(*kernel, *strides, *dilations) < 1:
        raise node.error(f"kernel {list(kernel)}, strides {strides}, dilations {dilations} do not fit {rank} axes")
    begin, end = _pads(node, rank)
    mode = auto_pad(node)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        if max(dilations) > 1 and node.op != "ConvTranspose":
            # the standard, onnxruntime's pooling and its convolution disagree about these
            raise UnsupportedNodeError(f"auto_pad {mode} with dilations {dilations} is ambiguous", "give explicit pads")
        totals = [max(0, (-(-s // step) - 1) * step + k - s) for s, step, k in zip(size, strides, kernel, strict=True)]
        begin, end = share(totals, mode)
    elif mode == "VALID":
        begin, end = [0] * rank, [0] * rank
    return Windows(_two(kernel, 1), _two(strides, 1), _two(dilations, 1), _two(begin, 0), _two(end, 0))


def auto_pad(node: Node) -> str:
    """NOTSET, VALID, SAME_UPPER or SAME_LOWER."""
    mode = node.attr_str("auto_pad", "NOTSET") or "NOTSET"
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise node.error(f"unknown auto_pad '{mode}'")
    return mode


def share(totals: Sequence[int], mode: str) -> tuple[list[int], list[int]]:
    """Total padding shared out to both sides; the odd element goes where ``mode`` says."""
    small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (large, small) if mode == "SAME_LOWER" else (small, large)


def _pads(node: Node, rank: int) -> tuple[list[int], list[int]]:
    pads = _list(node, "pads", 2 * rank, 0)
    if min(pads) < 0:
        raise UnsupportedNodeError(f"negative pads {pads} are not supported", "crop with a Slice")
    return pads[:rank], pads[rank:]


def _list(node: Node, name: str, length: int, default: int) -> list[int]:
    values = node.attr_ints(name, [default] * length)
    if len(values) != length:
        raise node.error(f"attribute '{name}' {values} must have {length} entries")
    return values


def _two(values: Sequence[int], lead: int) -> tuple[int, int]:
    return (values[0], values[1]) if len(values) == 2 else (lead, values[0])
