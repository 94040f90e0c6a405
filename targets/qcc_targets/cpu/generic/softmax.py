"""The integer softmax: with e = table[max - x], y = min((e * (2**40 // Σe) + 2**31) >> 32, 255), and no division.

Of two codes along the axis each result depends on their difference alone: that is a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.generic.epilogue import wide
from qcc_targets.cpu.generic.nest import Index, Nest, in_blocks, lanes_for, local, loops, nest, vector
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Kernel, Pointers, Site, buffer, pack, primitive

_BITS: Final = 40
"""The dividend is 2**40."""


def softmax(site: Site, isa: Isa) -> Kernel:
    """The kernel of an ``isoftmax`` of bytes."""
    return _of_two(site) if _extent(site) == 2 else _of_many(site, isa)


def _extent(site: Site) -> int:
    return site.view(0).shape[site.op.int_attr("axis")]


def _rows(site: Site) -> Nest:
    """Loops over everything but the axis; tensor 0 is x, 1 is y."""
    x, axis = site.view(0), site.op.int_attr("axis")
    rows = tuple(1 if a == axis else d for a, d in enumerate(x.shape))
    return nest(rows, [x.strides, site.output.strides])


def pair_table(table: NDArray[Any]) -> NDArray[np.uint8]:
    """What one of two codes becomes, by how much it is greater than the other, from -255 on."""
    e = table.astype(np.int64)
    ahead = np.arange(-255, 256)
    own, other = e[np.maximum(-ahead, 0)], e[np.maximum(ahead, 0)]
    y = (own * ((1 << _BITS) // (own + other)) + (1 << 31)) >> 32
    codes: NDArray[np.uint8] = np.minimum(y, 255).astype(np.uint8)
    return codes


def _of_two(site: Site) -> Kernel:
    x, y, axis = site.view(0), site.output, site.op.int_attr("axis")
    table, outer = pair_table(site.array(1)), _rows(site)

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        results = buffer(pointers.constants, "uint8")
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)

        def row(index: Index) -> None:
            at, to = outer.at(0, x.offset, index), outer.at(1, y.offset, index)
            first, second = (T.bind(T.cast(source[at + k * x.strides[axis]], "int32")) for k in (0, 1))
            for k, ahead in enumerate((first - second, second - first)):
                T.buffer_store(target, results[ahead + 255], [to + k * y.strides[axis]])

        loops(outer.dims, row)

    return Kernel("softmax.generic[2]", primitive(site.inputs, y, body), pack(table)[0])


def _of_many(site: Site, isa: Isa) -> Kernel:
    """Rows lie in the vector lanes."""
    x, y, axis = site.view(0), site.output, site.op.int_attr("axis")
    table, outer = site.array(1), _rows(site)
    extent, step, y_step = x.shape[axis], x.strides[axis], y.strides[axis]
    division = _Division.of(table, extent)

    def body(pointers: Pointers) -> None:
        source = buffer(pointers.inputs[0], x.tvm_dtype, x.alignment)
        exponentials = buffer(pointers.constants, "int32")
        target = buffer(pointers.output, y.tvm_dtype, y.alignment)

        def block(index: Index, first: Any, width: int) -> None:
            def code(i: Any, k: Any) -> Any:
                return T.cast(source[outer.at(0, x.offset, (*index, first + i)) + k * step], "int32")

            def power(i: Any, k: Any) -> Any:
                return exponentials[best[i] - code(i, k)]

            best, total = local(width, "int32", isa), local(width, division.dtype, isa)
            vector(width, lambda i: T.buffer_store(best, code(i, 0), [i]))
            with T.serial(0, extent) as k:
                vector(width, lambda i: T.buffer_store(best, T.max(best[i], code(i, k)), [i]))
            vector(width, lambda i: T.buffer_store(total, T.cast(T.int32(0), division.dtype), [i]))
            with T.serial(0, extent) as k:
                vector(width, lambda i: T.buffer_store(total, total[i] + T.cast(power(i, k), division.dtype), [i]))
            reciprocal = division(total, width, isa)

            def write(i: Any, k: Any) -> None:
                product = wide(power(i, k)) * wide(reciprocal[i])
                result = T.min((product + wide(1 << 31)) >> wide(32), wide(255))
                place = outer.at(1, y.offset, (*index, first + i)) + k * y_step
                T.buffer_store(target, T.cast(result, y.tvm_dtype), [place])

            with T.serial(0, extent) as k:
                vector(width, lambda i: write(i, k))

        lanes = lanes_for(isa, np.dtype(division.dtype).itemsize * 8)
        loops(outer.dims[:-1], lambda index: in_blocks(outer.dims[-1], lanes, partial(block, index)))

    return Kernel("softmax.generic", primitive(site.inputs, y, body), pack(table)[0])


@dataclass(frozen=True, slots=True)
class _Division:
    """2**40 // divisor by restoring division, one quotient bit a step, for divisors of at least ``least``.

    The division begins with the greatest power of two that is no more than ``least``: what lies above it
    gives no quotient bits.
    """

    least: int
    dtype: str

    @classmethod
    def of(cls, table: NDArray[Any], extent: int) -> _Division:
        """For sums of ``extent`` entries of ``table``, of which the first is one."""
        least, most = int(table[0]), extent * int(table.max())
        narrow = 2 * most < 1 << 31 and (1 << _BITS) // least < 1 << 31
        return cls(least, "int32" if narrow else "int64")

    @property
    def steps(self) -> int:
        """Quotient bits after the first."""
        return _BITS + 1 - self.least.bit_length()

    def __call__(self, divisor: Any, width: int, isa: Isa) -> Any:
        """The quotient of every lane."""
        rest, quotient = local(width, self.dtype, isa), local(width, self.dtype, isa)

        def const(value: int) -> Any:
            return T.cast(T.int64(value), self.dtype)

        def set_to(state: Any, value: Callable[[Any], Any]) -> None:
            vector(width, lambda i: T.buffer_store(state, value(i), [i]))

        def subtract(doubled: Callable[[Any], Any]) -> None:
            def bit(i: Any) -> Any:
                return T.Select(rest[i] >= divisor[i], const(1), const(0))

            set_to(quotient, lambda i: doubled(i) + bit(i))
            set_to(rest, lambda i: rest[i] - T.Select(rest[i] >= divisor[i], divisor[i], const(0)))

        set_to(rest, lambda i: const(1 << self.least.bit_length() - 1))
        subtract(lambda i: const(0))
        with T.serial(0, self.steps):
            set_to(rest, lambda i: rest[i] + rest[i])
            subtract(lambda i: quotient[i] + quotient[i])
        return quotient
