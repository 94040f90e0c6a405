"""Resize and Upsample: nearest as gathers, linear as interpolation between two rows and two columns.

Coordinates are computed in float32 by onnxruntime's formulas, so that ties round as they do there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.convert.base import Converter
from qcc.frontend.convert.layout import dims_of
from qcc.frontend.convert.movement import select
from qcc.frontend.dims import Dim
from qcc.frontend.emit import Emitter
from qcc.frontend.forms import axis_of
from qcc.frontend.limits import MAX_INDICES
from qcc.frontend.node import FIX_BATCH, Node, UnsupportedNodeError
from qcc.ir.graph import Value
from qcc.ir.types import BATCH

F = np.float32


@dataclass(frozen=True, slots=True)
class _Axis:
    """One resized axis: ``coordinates`` of the result's elements in the input, not yet clamped."""

    axis: int
    size: int
    scale: float
    coordinates: NDArray[np.float32]


def _resize(node: Node, emit: Emitter) -> Value:
    x = emit.value(node.tensor(0))
    axes = _axes(node, x)
    mode = node.attr_str("mode", "nearest")
    if mode == "nearest":
        for a in axes:
            x = select(emit, x, a.axis, _nearest(node, a))
        return x
    if mode not in ("linear", "bilinear"):
        raise UnsupportedNodeError(f"mode '{mode}' is not supported", "use nearest or linear")
    if node.attr_int("antialias", 0) and any(a.scale < 1 for a in axes):
        raise UnsupportedNodeError("antialiased shrinking is not supported", "set antialias=0, or use average pooling")
    return _linear(emit, x, axes)


def _axes(node: Node, x: Value) -> list[_Axis]:
    """The axes whose size or coordinates change."""
    rank = x.type.rank
    places = list(range(rank))
    if node.has_attr("axes"):
        places = [axis_of(node, a, rank) for a in node.attr_ints("axes")]
    pairs = _scales(node, [dims_of(x)[a] for a in places])
    roi = _roi(node, places)
    transform = node.attr_str("coordinate_transformation_mode", "half_pixel")
    if node.opset < 11:
        transform = "asymmetric"
    result: list[_Axis] = []
    for axis, (length, scale), region in zip(places, pairs, roi, strict=True):
        size = x.type.shape[axis]
        if length == size and scale == 1 and transform != "tf_crop_and_resize":
            continue  # as in onnxruntime, whatever the transformation says of an unscaled axis
        if not 0 < length <= MAX_INDICES:
            raise node.error(f"a result of size {length} along axis {axis}")
        coordinates = _coordinates(node, transform, size, length, scale, region)
        if length != size or not np.array_equal(coordinates, np.arange(size)):
            result.append(_Axis(axis, size, scale, coordinates))
    return result


def _scales(node: Node, dims: Sequence[int | Dim]) -> list[tuple[int, float]]:
    """Result size and scale per axis; those of a batch are BATCH and 1."""
    if node.opset < 11:
        return _by_scales(node, 1, dims)
    if node.has(2) and node.known(2, "scales").size:
        return _by_scales(node, 2, dims)
    sizes = node.dim_list(3, "sizes")
    if len(sizes) != len(dims):
        raise node.error(f"{len(sizes)} sizes do not fit {len(dims)} axes")
    policy = node.attr_str("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        return _keeping_ratio(node, dims, sizes, policy)
    return [_target(d, s) for d, s in zip(dims, sizes, strict=True)]


def _target(dim: int | Dim, size: int | Dim) -> tuple[int, float]:
    if dim == size:
        return (BATCH if isinstance(dim, Dim) else dim, 1.0)
    if isinstance(dim, Dim) or isinstance(size, Dim):
        raise UnsupportedNodeError("it resizes the batch", FIX_BATCH)
    return size, float(F(size) / F(dim))


def _by_scales(node: Node, index: int, dims: Sequence[int | Dim]) -> list[tuple[int, float]]:
    scales = node.fixed(index, "scales").reshape(-1)
    if len(scales) != len(dims) or not np.isfinite(scales).all() or (scales <= 0).any():
        raise node.error(f"bad scales {scales.tolist()} for {len(dims)} axes")
    result: list[tuple[int, float]] = []
    for dim, scale in zip(dims, map(float, scales), strict=True):
        if not isinstance(dim, Dim):
            result.append((int(min(float(F(dim) * F(scale)), 2.0**40)), scale))
        elif scale == 1:
            result.append((BATCH, 1.0))
        else:
            raise UnsupportedNodeError("it resizes the batch", FIX_BATCH)
    return result


def _keeping_ratio(
    node: Node, dims: Sequence[int | Dim], sizes: Sequence[int | Dim], policy: str
) -> list[tuple[int, float]]:
    if policy not in ("not_larger", "not_smaller"):
        raise node.error(f"unknown keep_aspect_ratio_policy '{policy}'")
    numbers = [(d, s) for d, s in zip(dims, sizes, strict=True) if isinstance(d, int) and isinstance(s, int)]
    if len(numbers) != len(dims) or any(d < 1 for d, _ in numbers):
        raise UnsupportedNodeError("it resizes the batch", FIX_BATCH)
    ratios = [s / d for d, s in numbers]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return [(int(scale * d + 0.5), scale) for d, _ in numbers]


def _roi(node: Node, places: Sequence[int]) -> list[tuple[float, float]]:
    """Start and end of the cropped region per axis, in units of the axis."""
    whole = [(0.0, 1.0)] * len(places)
    if node.attr_str("coordinate_transformation_mode", "") != "tf_crop_and_resize":
        return whole
    roi = node.fixed(1, "roi").reshape(-1)
    if roi.size != 2 * len(places):
        raise node.error(f"a roi of {roi.size} numbers does not fit {len(places)} axes")
    return [(float(roi[i]), float(roi[i + len(places)])) for i in range(len(places))]


def _coordinates(
    node: Node, transform: str, size: int, length: int, scale: float, region: tuple[float, float]
) -> NDArray[np.float32]:
    i, s = np.arange(length, dtype=F), F(scale)
    half: NDArray[Any] = (i + F(0.5)) / s - F(0.5)
    if transform == "half_pixel" or (transform == "pytorch_half_pixel" and length > 1):
        return half
    if transform == "pytorch_half_pixel" or (transform == "align_corners" and length == 1):
        return np.zeros(length, F)
    if transform == "align_corners":
        return i * F(size - 1) / F(length - 1)
    if transform == "asymmetric":
        return i / s
    if transform == "tf_half_pixel_for_nn":
        return (i + F(0.5)) / s
    if transform == "half_pixel_symmetric":
        offset = F(size) / F(2) * (F(1) - F(length) / (s * F(size)))
        return offset + (i + F(0.5)) / s - F(0.5)
    if transform == "tf_crop_and_resize":
        return _cropped(size, length, region)
    raise node.error(f"unknown coordinate_transformation_mode '{transform}'")


def _cropped(size: int, length: int, region: tuple[float, float]) -> NDArray[np.float32]:
    start, end = region
    if length == 1:
        coordinates = np.array([0.5 * (start + end) * (size - 1)], F)
    else:
        step = (end - start) * (size - 1) / (length - 1)
        coordinates = (start * (size - 1) + np.arange(length) * step).astype(F)
    if coordinates.min() < 0 or coordinates.max() > size - 1:
        raise UnsupportedNodeError("its region of interest reaches beyond the input", "crop inside, or pad before it")
    return coordinates


def _nearest(node: Node, a: _Axis) -> list[int]:
    c = a.coordinates
    mode = node.attr_str("nearest_mode", "round_prefer_floor")
    if node.opset < 11:  # before the attribute, onnxruntime rounded towards what exists
        mode = "ceil" if a.scale < 1 else "floor"
    if mode == "round_prefer_floor":
        nearest = np.ceil(c - F(0.5))
    elif mode == "round_prefer_ceil":
        nearest = np.floor(c + F(0.5))
    elif mode in ("floor", "ceil"):
        nearest = np.floor(c) if mode == "floor" else np.ceil(c)
    else:
        raise node.error(f"unknown nearest_mode '{mode}'")
    return [int(n) for n in np.clip(nearest, 0, a.size - 1)]


def _linear(emit: Emitter, x: Value, axes: Sequence[_Axis]) -> Value:
    """Linear interpolation of up to two axes, brought to the places of H and W."""
    if not axes:
        return x
    if len(axes) > 2:
        raise UnsupportedNodeError(f"linear interpolation of {len(axes)} axes is not supported", "two are, at most")
    moved = [a.axis for a in axes]
    rest = [i for i in range(x.type.rank) if i not in moved]
    perm = rest + moved
    image = emit.transpose(x, perm)
    lead = image.type.shape[: len(rest)]
    two = (_table(axes[0]), _table(axes[1])) if len(axes) == 2 else (_identity(), _table(axes[0]))
    size = [a.size for a in axes] if len(axes) == 2 else [1, axes[0].size]
    planes = 1
    for dim in lead[1:]:
        planes *= dim
    image = emit.reshape(image, (*(lead[:1] or (1,)), planes, *size))
    (h0, h1, hf), (w0, w1, wf) = two
    image = emit.op("resize_linear", image, h0=h0, h1=h1, hf=hf, w0=w0, w1=w1, wf=wf)
    image = emit.reshape(image, (*lead, *(len(a.coordinates) for a in axes)))
    return emit.transpose(image, [perm.index(i) for i in range(len(perm))])


Table = tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]


def _table(a: _Axis) -> Table:
    """Lower and upper neighbour of each coordinate, and the weight of the upper one."""
    c = np.clip(a.coordinates, F(0), F(a.size - 1))
    low = np.floor(c)
    high = np.minimum(low + 1, a.size - 1)
    return tuple(map(int, low)), tuple(map(int, high)), tuple(map(float, c - low))


def _identity() -> Table:
    return (0,), (0,), (0.0,)


CONVERTERS: Final[Mapping[str, Converter]] = {"Resize": _resize, "Upsample": _resize}
