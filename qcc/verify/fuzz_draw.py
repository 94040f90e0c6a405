"""Random pieces of INTEGER graphs: shapes, grids, constants and requantizations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from qcc.ir.bounds import certificates
from qcc.ir.graph import Attr, Graph, Op, Stage, Value, constant, op
from qcc.ir.opset import OPSET
from qcc.ir.types import BATCH, DTYPES, Dyadic, Quant, TensorType

Array = NDArray[Any]
T = TypeVar("T")

_CODES: Final = ("u8",) * 10 + ("i8",) * 6 + ("u16", "i16")
_RESULTS: Final = ("u8",) * 10 + ("i8",) * 6 + ("i32",) * 3 + ("u16", "i16")
_SHIFTS: Final = (32,) * 6 + (1, 2, 8, 16, 24, 31)
_MULTIPLIERS: Final = (0, 1, -1, (1 << 31) - 1, -(1 << 31))
_SCALE: Final = Dyadic(1, 4)
ROOM: Final = 6000
"""How many elements per sample a value may have, roughly."""


@dataclass(frozen=True, slots=True)
class Ending:
    """A requantization to be: the result's element type and grid, the shift, and the clamp."""

    dtype: str
    quant: Quant
    shift: int
    qmin: int
    qmax: int

    @property
    def attrs(self) -> dict[str, int]:
        return {"shift": self.shift, "qmin": self.qmin, "qmax": self.qmax}


class Draw:
    """A graph that grows by random operations; the same generator state grows the same graph."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.batch = BATCH if self.chance(0.7) else self.below(3) + 1
        self.inputs: list[Value] = []
        self.ops: list[Op] = []
        self.values: list[Value] = []
        self._names = 0

    def below(self, stop: int) -> int:
        """An integer in [0, stop)."""
        return int(self.rng.integers(stop))

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def size(self) -> int:
        """A number of channels or features: mostly small, sometimes across a vector's width."""
        return self.between(1, 6) if self.chance(0.8) else self.pick((8, 15, 16, 17, 32, 33, 40))

    def name(self, stem: str) -> str:
        self._names += 1
        return f"{stem}{self._names}"

    def codes(self, dtype: str, shape: Sequence[int]) -> Array:
        """Codes over the whole range of ``dtype``: uniform, or only its ends, or nearly constant."""
        info = np.iinfo(DTYPES[dtype])
        ends = np.array([info.min, info.max], info.dtype)
        if self.chance(0.1):
            return self.rng.choice(ends, size=shape)
        uniform = self.rng.integers(info.min, info.max, size=shape, endpoint=True, dtype=info.dtype)
        if self.chance(0.1):
            return np.where(self.rng.random(shape) < 0.9, uniform.flat[0] if uniform.size else ends[0], uniform)
        return uniform

    def grid(self, dtype: str) -> Quant:
        """A grid for ``dtype``; now and then narrower than the element type."""
        bits = 8 * DTYPES[dtype].itemsize
        bits = self.between(4, bits) if bits < 32 and self.chance(0.1) else bits
        signed = dtype.startswith("i")
        plain = Quant(bits, signed, (_SCALE,))
        zero = 0 if bits == 32 or self.chance(0.25) else self.between(plain.qmin, plain.qmax)
        return Quant(bits, signed, (_SCALE,), zero)

    def input(self, shape: Sequence[int], dtype: str | None = None, quant: Quant | None = None) -> Value:
        dtype = dtype or self.pick(_CODES)
        value = Value(self.name("x"), TensorType(tuple(shape), dtype, quant or self.grid(dtype)))
        self.inputs.append(value)
        self.values.append(value)
        return value

    def other(self, shape: Sequence[int]) -> Value:
        """A value of this shape: one that exists, or a new input."""
        fitting = [v for v in self.values if v.type.shape == tuple(shape) and v.type.dtype != "i64"]
        return self.pick(fitting) if fitting and self.chance(0.6) else self.input(shape)

    def const(self, stem: str, array: Array, quant: Quant | None = None) -> Value:
        made = constant(self.name(stem), array, quant=quant)
        self.ops.append(made)
        return made.result

    def ending(self) -> Ending:
        """A random result type; mostly the whole clamp, else a fused Relu or any narrower one."""
        dtype = self.pick(_RESULTS)
        quant = self.grid(dtype)
        shift = self.pick(_SHIFTS) if self.chance(0.8) else self.between(1, 32)
        low, high = quant.qmin, quant.qmax
        if self.chance(0.2):
            low = quant.zero_point
        elif self.chance(0.1):
            low, high = sorted((self.between(low, high), self.between(low, high)))
        return Ending(dtype, quant, shift, low, high)

    def multipliers(self, end: Ending, spread: float, shape: Sequence[int]) -> Value:
        """``m`` such that accumulators of deviation ``spread`` fill the result's range more or less."""
        width = min(end.quant.qmax - end.quant.qmin, 1 << 20)
        typical = width / max(spread, 1.0) * 2.0**end.shift * math.exp(self.rng.uniform(-3, 1))
        real = typical * self.rng.uniform(0.3, 1.0, shape) * self.rng.choice([-1, 1, 1, 1, 1], size=shape)
        m = np.clip(np.rint(real), -(2**31), 2**31 - 1).astype(np.int32)
        if self.chance(0.05):
            m = np.where(self.rng.random(shape) < 0.5, np.int32(self.pick(_MULTIPLIERS)), m)
        return self.const("m", np.asarray(m, np.int32))

    def offsets(self, end: Ending, shape: Sequence[int]) -> Value:
        """``c``: zero point, rounding half and a random bias; at times near the ends of int64."""
        width = min(end.quant.qmax - end.quant.qmin, 1 << 20)
        bias = self.rng.uniform(-0.3, 0.3, shape) * width * 2.0**end.shift
        c = np.rint(np.clip(bias, -(2.0**61), 2.0**61)).astype(np.int64)
        c = c + (end.quant.zero_point << end.shift) + (1 << (end.shift - 1))
        if self.chance(0.03):
            c = c + np.int64(self.pick((-1, 1)) * self.between(1 << 61, (1 << 62) - 1))
        return self.const("c", np.asarray(c, np.int64))

    def shape(self, kind: str, operands: Sequence[Value], **attrs: Attr) -> tuple[int, ...]:
        """The result's shape of such an operation. Raises VerifyError when shapes do not fit."""
        return OPSET[kind].shape(op(kind, operands, [Value("draft", TensorType((), "u8"))], **attrs))

    def emit(self, kind: str, operands: Sequence[Value], like: Ending | TensorType, **attrs: Attr) -> Value:
        """Append an operation whose result has the element type and grid of ``like``.

        Raises VerifyError when shapes do not fit, or an accumulator may overflow.
        """
        shape = self.shape(kind, operands, **attrs)
        result = Value(self.name("v"), TensorType(shape, like.dtype, like.quant))
        made = op(kind, operands, [result], **attrs)
        certificates(Graph("draft", Stage.INTEGER, tuple(self.inputs), (*self.ops, made), (result,)))
        self.ops.append(made)
        self.values.append(result)
        return result


def elements(value: Value) -> int:
    """Elements per sample."""
    return math.prod(d for d in value.type.shape if d != BATCH)
