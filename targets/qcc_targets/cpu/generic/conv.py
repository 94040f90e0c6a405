"""Convolutions and dense layers: the geometry that their contraction has."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic import contraction
from qcc_targets.cpu.generic.epilogue import Epilogue, wide
from qcc_targets.cpu.generic.nest import Index, in_lanes, lanes_for, loops, overlays
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, buffer, pack, primitive


def centred_weights(site: Site) -> NDArray[np.int64]:
    """The weight codes less their zero point."""
    return site.array(1).astype(np.int64) - site.zero_point(1)


def conv2d(site: Site, isa: Isa) -> Kernel:
    """A convolution with any groups, strides and dilations; its padding is in the input's halo."""
    weights, groups = centred_weights(site), site.op.int_attr("groups")
    outputs, inputs, rows, columns = weights.shape
    if inputs == 1 and outputs == groups and groups > 1:
        return _depthwise(site, isa, weights)
    x, y, r = site.view(0), site.output, _residual(site)
    (sh, sw), (dh, dw) = site.op.ints_attr("strides"), site.op.ints_attr("dilations")
    geometry = contraction.Geometry(
        pixels=(y.samples, y.height, y.width),
        x=(x.sample_stride, sh * x.row_stride, sw * x.pixel_stride),
        r=(r.sample_stride, r.row_stride, r.pixel_stride),
        y=(y.sample_stride, y.row_stride, y.pixel_stride),
        x_offset=window_start(site),
        taps=(rows, columns, inputs),
        tap_strides=(dh * x.row_stride, dw * x.pixel_stride, 1),
        groups=groups,
        group_step=inputs,
        outputs=outputs // groups,
        r_channel=r.strides[1],
        y_channel=y.strides[1],
    )
    flat = weights.transpose(0, 2, 3, 1).reshape(outputs, -1)
    return contraction.build(site, isa, geometry, flat, "conv2d")


def window_start(site: Site) -> int:
    """Elements from the input's first element to the first that the first window reads."""
    top, left, _, _ = site.op.ints_attr("pads")
    x = site.view(0)
    return -(top * x.row_stride + left * x.pixel_stride)


def _residual(site: Site) -> View:
    return site.view(4) if len(site.op.operands) > 4 else site.output


def dense(site: Site, isa: Isa) -> Kernel:
    """A product of [..., K] with constant weights [N, K]."""
    weights = centred_weights(site)
    x, y, r = site.view(0), site.output, _residual(site)
    geometry = contraction.Geometry(
        pixels=x.shape[:-1],
        x=x.strides[:-1],
        r=r.strides[:-1],
        y=y.strides[:-1],
        x_offset=0,
        taps=(weights.shape[1],),
        tap_strides=(x.strides[-1],),
        groups=1,
        group_step=0,
        outputs=weights.shape[0],
        r_channel=r.strides[-1],
        y_channel=y.strides[-1],
    )
    return contraction.build(site, isa, geometry, weights, "dense")


def _depthwise(site: Site, isa: Isa, weights: NDArray[np.int64]) -> Kernel:
    """One input channel per output channel: channels lie in the vector lanes."""
    x, y = site.view(0), site.output
    _, _, rows, columns = weights.shape
    channels = y.channels
    (sh, sw), (dh, dw) = site.op.ints_attr("strides"), site.op.ints_attr("dilations")
    taps = [(i * dh * x.row_stride + j * dw * x.pixel_stride) for i in range(rows) for j in range(columns)]
    small = np.abs(weights).max() <= 127
    start = (-site.zero_point(0) * weights.sum(axis=(1, 2, 3))).astype(np.int32)
    flat = weights.reshape(channels, -1).T.astype(np.int8 if small else np.int16)
    slots = (2, 3, 5) if len(site.op.operands) > 4 else (2, 3)
    arrays = [flat, start, *(np.broadcast_to(site.array(s).reshape(-1), (channels,)) for s in slots)]
    blob, starts = pack(*arrays)
    middle = "int16" if small and x.itemsize == 1 else "int32"
    finish = Epilogue.of(site.op)
    inplace = (1,) if len(slots) == 3 and overlays(site.view(4), y) else ()

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)
        w, begin, m, c, *mr = (
            buffer(pointers.constants, a.dtype.name, offset=at) for a, at in zip(arrays, starts, strict=True)
        )

        def pixel(index: Index) -> None:
            n, i, j = index
            corner = x.index(n, 0, i * sh, j * sw) + window_start(site)

            def channel(at: Any) -> None:
                acc = begin[at]
                for t, step in enumerate(taps):
                    product = T.cast(source[corner + (at + step)], middle) * T.cast(w[at + t * channels], middle)
                    acc = acc + T.cast(product, "int32")
                total = wide(acc) * wide(m[at]) + c[at]
                if mr:
                    r = site.view(4)
                    code = buffer(pointers.inputs[1], r.tvm_dtype, r.alignment)[r.index(n, at, i, j)]
                    total = total + wide(code) * wide(mr[0][at])
                T.buffer_store(target, finish(total), [y.index(n, at, i, j)])

            in_lanes(channels, lanes_for(isa, 32), channel)

        loops((y.samples, y.height, y.width), pixel)

    func = primitive(site.inputs, y, body, noalias=not inplace)
    return Kernel("depthwise.generic", func, blob, 0, inplace)
