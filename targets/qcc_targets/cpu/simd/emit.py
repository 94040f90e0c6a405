"""Vector statements and expressions over TensorIR: what the templates write their kernels in.

Every helper that returns a vector binds it to a variable, so that it is computed once and in the
order written; LLVM largely keeps that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

from qcc_targets.cpu.kernel import ALIGN, buffer

Expr = Any
"""A TensorIR expression, or an int that becomes one."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Elements of one type behind a pointer, from element ``start`` on."""

    buffer: Any
    start: int = 0


def memory(pointer: Any, dtype: str, align: int = ALIGN, offset: int = 0) -> Memory:
    """The elements of TVM type ``dtype`` from ``offset`` bytes behind ``pointer``.

    The offset goes into every index, so that the function needs no lowering of its buffers.
    """
    return Memory(buffer(pointer, dtype, align), offset // np.dtype(dtype).itemsize)


def bind(value: Expr) -> Expr:
    """``value``, computed here and once."""
    return T.bind(value)


def load(source: Memory, index: Expr, lanes: int) -> Expr:
    """``lanes`` consecutive elements."""
    return bind(tirx.BufferLoad(source.buffer, [_span(source, index, lanes)]))


def scalar(source: Memory, index: Expr) -> Expr:
    """One element."""
    return load(source, index, 1)


def store(target: Memory, index: Expr, value: Expr, lanes: int) -> None:
    """Write ``lanes`` consecutive elements."""
    T.buffer_store(target.buffer, value, [_span(target, index, lanes)])


def _span(where: Memory, index: Expr, lanes: int) -> Expr:
    first = index + where.start
    return tirx.Ramp(first, 1, lanes) if lanes > 1 else first


def shuffle(vectors: Sequence[Expr], order: Sequence[int]) -> Expr:
    """The lanes ``order`` of the concatenation of ``vectors``, which all have one type."""
    return bind(tirx.Shuffle(list(vectors), list(order)))


def bits(dtype: str, value: Expr) -> Expr:
    """The same bits as another vector type."""
    return tirx.reinterpret(dtype, value)


def cast(dtype: str, value: Expr) -> Expr:
    """The same numbers as another vector type."""
    return tirx.Cast(dtype, value)


def splat(dtype: str, value: int, lanes: int) -> Expr:
    """A constant in every lane."""
    return tirx.Broadcast(tirx.IntImm(dtype, value), lanes)


def broadcast(value: Expr, lanes: int) -> Expr:
    """A scalar in every lane."""
    return tirx.Broadcast(value, lanes)


def pure(dtype: str, name: str, *args: Expr) -> Expr:
    """The value of an LLVM intrinsic without side effects; ``name`` without its ``llvm.``."""
    return bind(tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args))


def run(name: str, *args: Expr) -> None:
    """Call an LLVM intrinsic for its effect."""
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.{name}", *args))


def address(source: Memory, index: Expr) -> Expr:
    """The address of an element."""
    return tirx.address_of(tirx.BufferLoad(source.buffer, [index + source.start]))


def prefetch(source: Memory, index: Expr, *, near: bool = True) -> None:
    """Ask for the cache line of an element to be read, whether or not there is memory at its address.

    ``near``: into all levels of cache, otherwise into all but the first.
    """
    read, levels, data = (tirx.IntImm("int32", n) for n in (0, 3 if near else 2, 1))
    run("prefetch", address(source, index), read, levels, data)


@contextmanager
def loop(extent: int) -> Iterator[Expr]:
    """A serial loop over ``range(extent)``; no loop is emitted where one pass is all there is."""
    if extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as index:
            yield index


@contextmanager
def at_first(index: Expr) -> Iterator[None]:
    """Statements that run only where ``index``, a loop's or computed from one, is 0."""
    if isinstance(index, int):
        if index:
            raise ValueError(f"a loop of one pass has index 0, not {index}")
        yield
    else:
        with T.If(tirx.EQ(index, 0)), T.Then():
            yield


def local(dtype: str, lanes: int) -> Memory:
    """A vector variable: LLVM keeps it in a register as long as all its uses are whole vectors."""
    return Memory(T.alloc_buffer((lanes,), dtype, scope="global"))


def interleave(*streams: tuple[Sequence[Callable[[], None]], int]) -> None:
    """Run the steps of several streams, each spread evenly over the whole.

    A stream is its steps and a phase: of two steps that fall on one moment, that of the lower
    phase goes first.
    """
    moments = [
        ((number + 1) / len(steps), phase, number, step)
        for steps, phase in streams
        for number, step in enumerate(steps)
    ]
    for *_, step in sorted(moments, key=lambda m: m[:3]):
        step()


def maximum(a: Expr, b: Expr) -> Expr:
    return tirx.Max(a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    return tirx.Min(a, b)


def least(a: Expr, b: Expr) -> Expr:
    """The lesser of two scalars."""
    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.Min(a, b)
