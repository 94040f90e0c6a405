"""Products of two computed tensors, and selection by index."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic.epilogue import Epilogue, wide
from qcc_targets.cpu.generic.nest import (
    Index,
    broadcast_strides,
    in_blocks,
    in_lanes,
    laid_out,
    lanes_for,
    local,
    loops,
    nest,
    vector,
)
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, View, buffer, pack, primitive
from qcc_targets.cpu.views import logical


def matmul(site: Site, isa: Isa) -> Kernel:
    """[..., M, K] times [..., K, N], either of them computed or constant, then the epilogue."""
    y = site.output
    fixed = [site.arrays.get(v.name) for v in site.op.operands[:2]]
    sides = [_side(site, slot) for slot in (0, 1)]
    constants = [laid_out(site.array(slot), y) for slot in (2, 3)]
    blob, starts = pack(*(a for a in fixed if a is not None), *(a for a, _ in constants))
    dtype = "int32" if all(s.itemsize <= 2 for s in sides) else "int64"
    finish = Epilogue.of(site.op)
    a, b = sides
    depth = a.shape[-1]
    strides_a = (*broadcast_strides(_leading(a), y.shape[:-2]), a.strides[-2], 0)
    strides_b = (*broadcast_strides(_leading(b), y.shape[:-2]), 0, b.strides[-1])
    lanes = lanes_for(isa, 32) if b.strides[-1] == 1 else 1

    def body(pointers: Pointers) -> None:
        inputs, offsets = iter(pointers.inputs), iter(starts)
        left, right = (
            buffer(next(inputs), s.tvm_dtype, s.alignment)
            if array is None
            else buffer(pointers.constants, s.tvm_dtype, offset=next(offsets))
            for s, array in zip(sides, fixed, strict=True)
        )
        m, c = (buffer(pointers.constants, array.dtype.name, offset=next(offsets)) for array, _ in constants)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)

        def row(index: Index) -> None:
            def block(first: Any, width: int) -> None:
                acc = local(width, dtype, isa)
                vector(width, lambda i: T.buffer_store(acc, T.cast(0, dtype), [i]))
                from_a = a.offset + _dot((*index, 0), strides_a)
                from_b = b.offset + _dot((*index, first), strides_b)

                def multiply(k: Index) -> None:
                    p = T.cast(left[from_a + k[0] * a.strides[-1]], dtype) - T.cast(site.zero_point(0), dtype)

                    def lane(i: Any) -> None:
                        code = right[from_b + k[0] * b.strides[-2] + i * b.strides[-1]]
                        q = T.cast(code, dtype) - T.cast(site.zero_point(1), dtype)
                        T.buffer_store(acc, acc[i] + p * q, [i])

                    vector(width, lane)

                def store(i: Any) -> None:
                    place = (*index, first + i)
                    mi, ci = (v[_dot(place, s)] for v, (_, s) in zip((m, c), constants, strict=True))
                    T.buffer_store(target, finish(wide(acc[i]) * wide(mi) + ci), [y.index(*place)])

                loops((depth,), multiply)
                vector(width, store)

            in_blocks(y.shape[-1], lanes, block)

        loops(y.shape[:-1], row)

    return Kernel("matmul.generic", primitive(site.inputs, y, body), blob)


def _side(site: Site, slot: int) -> View:
    view = site.views[slot]
    if view is not None:
        return view
    array = site.array(slot)
    return logical(site.op.operands[slot].type.dtype, array.shape)


def _leading(view: View) -> View:
    return View(view.dtype, view.shape[:-2], view.strides[:-2])


def _dot(index: Index, strides: tuple[int, ...]) -> Any:
    total: Any = 0
    for variable, stride in zip(index, strides, strict=True):
        if stride:
            total = total + variable * stride
    return total


def gather(site: Site, isa: Isa) -> Kernel:
    """Elements of x at constant indices along one axis."""
    x, y = site.view(0), site.output
    axis = site.op.int_attr("axis")
    table = np.array(site.op.ints_attr("indices"), np.int32) * x.strides[axis]
    strides = [0 if a == axis else s for a, s in enumerate(x.strides)]
    plan = nest(y.shape, [strides, [int(a == axis) for a in range(y.rank)], y.strides])

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        steps = buffer(pointers.constants, "int32")
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)

        def row(outer: Index) -> None:
            def element(i: Any) -> None:
                index = (*outer, i)
                start = plan.at(0, x.offset, index) + steps[plan.at(1, 0, index)]
                T.buffer_store(target, source[start], [plan.at(2, y.offset, index)])

            in_lanes(plan.dims[-1], lanes_for(isa, 16) if not plan.strides[1][-1] else 1, element)

        loops(plan.dims[:-1], row)

    return Kernel("gather.generic", primitive(site.inputs, y, body), pack(table.astype(np.int32))[0])
