"""Operations that compute each result element from the elements at the same place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic.epilogue import Epilogue, wide
from qcc_targets.cpu.generic.nest import broadcast_strides, in_lanes, laid_out, lanes_for, loops, nest, overlays
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, buffer, pack, primitive


@dataclass(frozen=True, slots=True)
class Stream:
    """An operand of an elementwise loop: the view of an input, or a constant of its own type."""

    slot: int
    strides: tuple[int, ...]
    view: View | None = None
    array: NDArray[Any] | None = None


def build(site: Site, isa: Isa, compute: Callable[[Sequence[Any]], Any], *, label: str, reuse: bool = True) -> Kernel:
    """A kernel that stores ``compute`` of one element of every operand, for every result element.

    With ``reuse`` the output may overlay an operand of the same view.
    """
    streams = [_stream(site, slot) for slot in range(len(site.views))]
    blob, starts = pack(*(s.array for s in streams if s.array is not None))
    output = site.output
    plan = nest(output.shape, [*(s.strides for s in streams), output.strides])

    def body(pointers: Pointers) -> None:
        inputs, offsets = iter(zip(pointers.inputs, site.inputs, strict=True)), iter(starts)
        sources: list[tuple[Any, int]] = []
        for s in streams:
            if s.array is not None:
                sources.append((buffer(pointers.constants, s.array.dtype.name, offset=next(offsets)), 0))
            else:
                pointer, view = next(inputs)
                sources.append((buffer(pointer, view.tvm_dtype, view.alignment), view.offset))
        target = buffer(pointers.output, output.tvm_dtype, output.alignment)

        def element(index: tuple[Any, ...]) -> None:
            values = [b[plan.at(i, offset, index)] for i, (b, offset) in enumerate(sources)]
            T.buffer_store(target, compute(values), [plan.at(-1, output.offset, index)])

        def row(outer: tuple[Any, ...]) -> None:
            in_lanes(plan.dims[-1], lanes_for(isa, 16), lambda i: element((*outer, i)))

        loops(plan.dims[:-1], row)

    inplace = tuple(i for i, v in enumerate(site.inputs) if reuse and overlays(v, output))
    return Kernel(f"{label}.generic", primitive(site.inputs, output, body, noalias=not inplace), blob, 0, inplace)


def _stream(site: Site, slot: int) -> Stream:
    view = site.views[slot]
    if view is not None:
        return Stream(slot, broadcast_strides(view, site.output.shape), view=view)
    array, strides = laid_out(site.array(slot), site.output)
    return Stream(slot, strides, array=array)


def copy(site: Site, isa: Isa) -> Kernel:
    return build(site, isa, lambda values: values[0], label="copy", reuse=False)


def linear(site: Site, isa: Isa) -> Kernel:
    """clamp((x1*m1 + x2*m2 + … + c) >> shift), all operands broadcasting."""
    finish = Epilogue.of(site.op)

    def compute(values: Sequence[Any]) -> Any:
        total = values[0]
        for x, m in zip(values[1::2], values[2::2], strict=True):
            total = total + wide(x) * wide(m)
        return finish(total)

    return build(site, isa, compute, label="linear")


def multiply(site: Site, isa: Isa) -> Kernel:
    """clamp(((a - za) * (b - zb) * m + c) >> shift), all operands broadcasting."""
    finish = Epilogue.of(site.op)
    za, zb = site.zero_point(0), site.zero_point(1)
    small = all(np.dtype(v.type.numpy).itemsize <= 2 for v in site.op.operands[:2])
    dtype = "int32" if small else "int64"

    def compute(values: Sequence[Any]) -> Any:
        a, b, m, c = values
        product = (T.cast(a, dtype) - T.cast(za, dtype)) * (T.cast(b, dtype) - T.cast(zb, dtype))
        return finish(wide(product) * wide(m) + c)

    return build(site, isa, compute, label="multiply")


def lookup(site: Site, isa: Isa) -> Kernel:
    """table[x - lowest code], one table for all or one per index of axis 1."""
    view, output, table = site.view(0), site.output, site.array(1)
    lowest = int(np.iinfo(view.tvm_dtype).min)
    per_channel = table.ndim == 2
    rows = tuple(table.shape[-1] if per_channel and a == 1 else 0 for a in range(output.rank))
    plan = nest(output.shape, [view.strides, rows, output.strides])

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], view.tvm_dtype, view.alignment)
        codes = buffer(pointers.constants, output.tvm_dtype)
        target = buffer(pointers.output, output.tvm_dtype, output.alignment)

        def element(index: tuple[Any, ...]) -> None:
            code = T.cast(source[plan.at(0, view.offset, index)], "int32") - lowest
            T.buffer_store(target, codes[plan.at(1, 0, index) + code], [plan.at(2, output.offset, index)])

        loops(plan.dims, element)

    inplace = (0,) if overlays(view, output) else ()
    func = primitive(site.inputs, output, body, noalias=not inplace)
    return Kernel("lookup.generic", func, pack(table)[0], 0, inplace)


def fill_halo(site: Site, isa: Isa) -> Kernel:
    """Writes the fill code to the border around every plane of a channels-last tensor."""
    view = site.output
    halo, row, pixel = view.halo, view.row_stride, view.pixel_stride
    wide_row = view.width + halo.left + halo.right
    bands = [  # first row, first column, rows, columns
        (-halo.top, -halo.left, halo.top, wide_row),
        (view.height, -halo.left, halo.bottom, wide_row),
        (0, -halo.left, view.height, halo.left),
        (0, view.width, view.height, halo.right),
    ]

    def body(pointers: Pointers) -> None:
        target = buffer(pointers.output, view.tvm_dtype, view.alignment)
        for top, left, rows, columns in bands:
            if not rows or not columns:
                continue
            offset = view.offset + top * row + left * pixel
            shape = (view.samples, view.channels, rows, columns)
            plan = nest(shape, [view.strides])

            def write(outer: tuple[Any, ...], plan: Any = plan, offset: int = offset) -> None:
                def element(i: Any) -> None:
                    T.buffer_store(target, T.cast(view.fill, view.tvm_dtype), [plan.at(0, offset, (*outer, i))])

                in_lanes(plan.dims[-1], lanes_for(isa, 8 * view.itemsize), element)

            loops(plan.dims[:-1], write)

    return Kernel("fill_halo.generic", primitive((), view, body))
