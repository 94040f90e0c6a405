"""Reductions over whole axes: sums, maxima, positions of maxima."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic.epilogue import Epilogue, wide
from qcc_targets.cpu.generic.nest import Index, Nest, in_blocks, laid_out, lanes_for, local, loops, nest, vector
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, buffer, pack, primitive


@dataclass(frozen=True, slots=True)
class Reduction:
    """Loops over the result (tensor 0: x, 1: y, then constants), and over the reduced axes of x."""

    outer: Nest
    inner: Nest
    lanes: int


def _plan(site: Site, isa: Isa, axes: Sequence[int], extra: Sequence[Sequence[int]], bits: int) -> Reduction:
    """``extra``: strides of further tensors over the result's axes."""
    x, y = site.view(0), site.output
    kept = [a for a in range(x.rank) if a not in axes]
    if y.rank == x.rank:
        strides = [[0 if a in axes else s for a, s in enumerate(x.strides)], y.strides, *extra]
    else:
        strides = [[x.strides[a] for a in kept], y.strides, *extra]
    outer = nest(y.shape, strides, lead=1)
    inner = nest([x.shape[a] for a in axes], [[x.strides[a] for a in axes]])
    return Reduction(outer, inner, lanes_for(isa, bits) if outer.strides[0][-1] == 1 else 1)


def _emit(plan: Reduction, offset: int, body: Callable[[Index, int, Callable[[Any, Index], Any]], None]) -> None:
    """``body(place, width, at)`` for every block of results: ``at(lane, tap)`` is an element index in x."""

    def row(index: Index) -> None:
        def block(first: Any, width: int) -> None:
            place = (*index, first)
            base = plan.outer.at(0, offset, place)
            step = plan.outer.strides[0][-1]
            body(place, width, lambda lane, tap: base + lane * step + plan.inner.at(0, 0, tap))

        in_blocks(plan.outer.dims[-1], plan.lanes, block)

    loops(plan.outer.dims[:-1], row)


def reduce_sum(site: Site, isa: Isa) -> Kernel:
    """clamp((Σ (x - zp) * m + c) >> shift) over the reduced axes."""
    x, y = site.view(0), site.output
    axes = site.op.ints_attr("axes")
    count = int(np.prod([x.shape[a] for a in axes]))
    dtype = "int32" if np.iinfo(x.tvm_dtype).bits + count.bit_length() < 31 else "int64"
    constants = [laid_out(site.array(slot), y) for slot in (1, 2)]
    blob, starts = pack(*(a for a, _ in constants))
    plan = _plan(site, isa, axes, [s for _, s in constants], 32)
    finish = Epilogue.of(site.op)

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)
        m, c = (
            buffer(pointers.constants, a.dtype.name, offset=at) for (a, _), at in zip(constants, starts, strict=True)
        )

        def block(place: Index, width: int, at: Callable[[Any, Index], Any]) -> None:
            acc = local(width, dtype, isa)
            bias = T.cast(-count * site.zero_point(0), dtype)
            vector(width, lambda i: T.buffer_store(acc, bias, [i]))

            def update(tap: Index) -> None:
                vector(width, lambda i: T.buffer_store(acc, acc[i] + T.cast(source[at(i, tap)], dtype), [i]))

            def store(i: Any) -> None:
                spot = (*place[:-1], place[-1] + i)
                total = wide(acc[i]) * wide(m[plan.outer.at(2, 0, spot)]) + c[plan.outer.at(3, 0, spot)]
                T.buffer_store(target, finish(total), [plan.outer.at(1, y.offset, spot)])

            loops(plan.inner.dims, update)
            vector(width, store)

        _emit(plan, x.offset, block)

    return Kernel("reduce_sum.generic", primitive(site.inputs, y, body), blob)


def reduce_max(site: Site, isa: Isa) -> Kernel:
    """The greatest code over the reduced axes."""
    x, y = site.view(0), site.output
    plan = _plan(site, isa, site.op.ints_attr("axes"), (), 8 * x.itemsize)
    lowest = int(np.iinfo(x.tvm_dtype).min)

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)

        def block(place: Index, width: int, at: Callable[[Any, Index], Any]) -> None:
            best = local(width, x.tvm_dtype, isa)
            vector(width, lambda i: T.buffer_store(best, T.cast(lowest, x.tvm_dtype), [i]))
            loops(
                plan.inner.dims,
                lambda tap: vector(width, lambda i: T.buffer_store(best, T.max(best[i], source[at(i, tap)]), [i])),
            )

            def store(i: Any) -> None:
                spot = (*place[:-1], place[-1] + i)
                T.buffer_store(target, best[i], [plan.outer.at(1, y.offset, spot)])

            vector(width, store)

        _emit(plan, x.offset, block)

    return Kernel("reduce_max.generic", primitive(site.inputs, y, body))


def argmax(site: Site, isa: Isa) -> Kernel:
    """The first position of the greatest code along an axis, as int64."""
    x, y = site.view(0), site.output
    axis = site.op.int_attr("axis")
    plan = _plan(site, isa, (axis,), (), 32)
    extent, stride = x.shape[axis], x.strides[axis]

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)

        def block(place: Index, width: int, at: Callable[[Any, Index], Any]) -> None:
            best = local(width, x.tvm_dtype, isa)
            where = local(width, "int32", isa)

            def start(i: Any) -> None:
                T.buffer_store(best, source[at(i, (0,))], [i])
                T.buffer_store(where, T.int32(0), [i])

            def update(tap: Index) -> None:
                def compare(i: Any) -> None:
                    code = source[at(i, (0,)) + tap[0] * stride]
                    T.buffer_store(where, T.Select(code > best[i], T.cast(tap[0], "int32"), where[i]), [i])
                    T.buffer_store(best, T.max(code, best[i]), [i])

                vector(width, compare)

            def store(i: Any) -> None:
                spot = (*place[:-1], place[-1] + i)
                T.buffer_store(target, T.cast(where[i], y.tvm_dtype), [plan.outer.at(1, y.offset, spot)])

            vector(width, start)
            loops((extent,), update)
            vector(width, store)

        _emit(plan, x.offset, block)

    return Kernel("argmax.generic", primitive(site.inputs, y, body))
