"""Vector statements and expressions over TensorIR: what the templates write their kernels in.

Every helper that returns a vector binds it to a variable, so that it is computed once and in the
order written; LLVM largely keeps that order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.tirx.script import builder as T  # noqa: N812 - TVM's own convention

Expr = Any
"""A TensorIR expression, or an int that becomes one."""


def bind(value: Expr) -> Expr:
    """``value``, computed here and once."""
    return T.bind(value)


def load(source: Any, index: Expr, lanes: int) -> Expr:
    """``lanes`` consecutive elements of a flat buffer."""
    return bind(tirx.BufferLoad(source, [tirx.Ramp(index, 1, lanes) if lanes > 1 else index]))


def store(target: Any, index: Expr, value: Expr, lanes: int) -> None:
    """Write ``lanes`` consecutive elements of a flat buffer."""
    T.buffer_store(target, value, [tirx.Ramp(index, 1, lanes) if lanes > 1 else index])


def shuffle(vectors: Sequence[Expr], order: Sequence[int]) -> Expr:
    """The lanes ``order`` of the concatenation of ``vectors``, which all have one type."""
    return bind(tirx.Shuffle(list(vectors), list(order)))


def bits(dtype: str, value: Expr) -> Expr:
    """The same bits as another vector type."""
    return tirx.reinterpret(dtype, value)


def splat(dtype: str, value: int, lanes: int) -> Expr:
    """A constant in every lane."""
    return tirx.Broadcast(tirx.IntImm(dtype, value), lanes)


def pure(dtype: str, name: str, *args: Expr) -> Expr:
    """The value of an LLVM intrinsic without side effects; ``name`` without its ``llvm.``."""
    return bind(tirx.call_llvm_pure_intrin(dtype, f"llvm.{name}", *args))


def run(name: str, *args: Expr) -> None:
    """Call an LLVM intrinsic for its effect."""
    T.evaluate(tirx.call_llvm_intrin("void", f"llvm.{name}", *args))


def address(source: Any, index: Expr) -> Expr:
    """The address of an element of a flat buffer."""
    return tirx.address_of(tirx.BufferLoad(source, [index]))


def bytes_of(source: Any, index: Expr, lanes: int) -> Expr:
    """``lanes`` bytes; alias of ``load`` that reads well where bytes are reinterpreted."""
    return load(source, index, lanes)


@contextmanager
def loop(extent: int) -> Iterator[Expr]:
    """A serial loop over ``range(extent)``; no loop is emitted where one pass is all there is."""
    if extent == 1:
        yield 0
    else:
        with T.serial(0, extent) as index:
            yield index


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
