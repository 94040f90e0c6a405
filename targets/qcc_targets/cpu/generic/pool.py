"""Operations that combine neighbouring pixels: pooling and linear resizing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic.conv import window_start
from qcc_targets.cpu.generic.epilogue import Epilogue, wide
from qcc_targets.cpu.generic.nest import Index, in_blocks, laid_out, lanes_for, local, loops, vector
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, buffer, pack, primitive


def max_pool2d(site: Site, isa: Isa) -> Kernel:
    """The greatest code of every window; the halo holds the lowest code, so padding never wins."""
    x = site.view(0)
    return _windows(site, isa, x.tvm_dtype, T.max, None)


def sum_pool2d(site: Site, isa: Isa) -> Kernel:
    """clamp((Σ (x - zp) * m + c) >> shift) over every window; the halo holds the zero point."""
    x = site.view(0)
    rows, columns = site.op.ints_attr("kernel")
    small = np.iinfo(x.tvm_dtype).bits + (rows * columns).bit_length() < 31
    finish = Epilogue.of(site.op)
    dtype = "int32" if small else "int64"
    return _windows(site, isa, dtype, lambda a, b: a + b, finish, rows * columns * site.zero_point(0))


def _windows(
    site: Site, isa: Isa, dtype: str, combine: Callable[[Any, Any], Any], finish: Epilogue | None, bias: int = 0
) -> Kernel:
    x, y = site.view(0), site.output
    (kh, kw), (sh, sw), (dh, dw) = (site.op.ints_attr(k) for k in ("kernel", "strides", "dilations"))
    constants = [laid_out(site.array(slot), y) for slot in range(1, len(site.views))]
    blob, starts = pack(*(array for array, _ in constants))
    lanes = lanes_for(isa, 8 * np.dtype(dtype).itemsize)

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)
        vectors = [
            buffer(pointers.constants, a.dtype.name, offset=at) for (a, _), at in zip(constants, starts, strict=True)
        ]

        def pixel(index: Index) -> None:
            n, i, j = index
            corner = x.index(n, 0, i * sh, j * sw) + window_start(site)

            def block(first: Any, width: int) -> None:
                acc = local(width, dtype, isa)

                def read(i: Any, tap: Index) -> Any:
                    return T.cast(
                        source[corner + first + i + (tap[0] * dh * x.row_stride + tap[1] * dw * x.pixel_stride)], dtype
                    )

                def start(i: Any) -> None:
                    T.buffer_store(acc, read(i, (0, 0)) - bias if bias else read(i, (0, 0)), [i])

                def update(tap: Index) -> None:
                    vector(width, lambda i: T.buffer_store(acc, combine(acc[i], read(i, tap)), [i]))

                def store(i: Any) -> None:
                    place = (n, first + i, index[1], index[2])
                    result = acc[i]
                    if finish is not None:
                        m, c = (
                            b[sum(p * s for p, s in zip(place, strides, strict=True) if s)]
                            for b, (_, strides) in zip(vectors, constants, strict=True)
                        )
                        result = finish(wide(result) * wide(m) + c)
                    T.buffer_store(target, result, [y.index(*place)])

                vector(width, start)
                loops((1, kw - 1) if kw > 1 else (), lambda tap: update((0, tap[1] + 1)) if tap else None)
                loops((kh - 1, kw) if kh > 1 else (), lambda tap: update((tap[0] + 1, tap[1])) if tap else None)
                vector(width, store)

            in_blocks(y.channels, lanes, block)

        loops((y.samples, y.height, y.width), pixel)

    label = "max_pool2d" if finish is None else "sum_pool2d"
    return Kernel(f"{label}.generic", primitive(site.inputs, y, body), blob)


def resize_linear(site: Site, isa: Isa) -> Kernel:
    """The sum Σ (x - zp) * fh * fw over four neighbours, in units of 2**-22; then the epilogue."""
    x, y, o = site.view(0), site.output, site.op
    tables = [np.array(o.attrs[k], np.int32) for k in ("h0", "h1", "hf", "w0", "w1", "wf")]
    constants = [laid_out(site.array(slot), y) for slot in (1, 2)]
    arrays = [*tables, *(a for a, _ in constants)]
    blob, starts = pack(*arrays)
    dtype = "int32" if x.itemsize == 1 else "int64"
    finish = Epilogue.of(o)
    one = 1 << 11

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)
        h0, h1, hf, w0, w1, wf, m, c = (
            buffer(pointers.constants, a.dtype.name, offset=at) for a, at in zip(arrays, starts, strict=True)
        )

        def pixel(index: Index) -> None:
            n, i, j = index
            rows = ((h0[i], one - hf[i]), (h1[i], hf[i]))
            columns = ((w0[j], one - wf[j]), (w1[j], wf[j]))

            def block(first: Any, width: int) -> None:
                def channel(k: Any) -> None:
                    acc: Any = T.cast(-site.zero_point(0) * one * one, dtype)
                    for row, fh in rows:
                        for column, fw in columns:
                            code = source[x.index(n, k, row, column)]
                            acc = acc + T.cast(code, dtype) * T.cast(fh * fw, dtype)
                    place = (n, k, i, j)
                    mk, ck = (
                        b[sum(p * s for p, s in zip(place, strides, strict=True) if s)]
                        for b, (_, strides) in zip((m, c), constants, strict=True)
                    )
                    T.buffer_store(target, finish(wide(acc) * wide(mk) + ck), [y.index(*place)])

                vector(width, channel, first)

            in_blocks(y.channels, lanes_for(isa, 32), block)

        loops((y.samples, y.height, y.width), pixel)

    return Kernel("resize_linear.generic", primitive(site.inputs, y, body), blob)
