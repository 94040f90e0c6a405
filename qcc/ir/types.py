"""Value types: shape, element type and, when quantized, how integers stand for reals."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import VerifyError
from qcc.ir.layout import Blocks, Widths

BATCH: Final = -1
"""The one symbolic dimension: the batch, always axis 0, written ``N`` in the text form."""

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "f32": np.dtype(np.float32),
    "u8": np.dtype(np.uint8),
    "i8": np.dtype(np.int8),
    "u16": np.dtype(np.uint16),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
}
"""Element types by their spelling in the text form."""

_SPELLING: Final[dict[np.dtype[Any], str]] = {v: k for k, v in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Dyadic:
    """The exact rational ``mult * 2**-shift``; the only scale an integer graph may hold.

    Every positive float32 is one, so a calibrated scale is taken over without loss.
    """

    mult: int
    shift: int

    def __post_init__(self) -> None:
        if self.mult <= 0 or not -160 <= self.shift <= 200:
            raise VerifyError(f"dyadic scale out of range: {self}")

    @classmethod
    def of(cls, scale: float) -> Dyadic:
        """The exact value of ``scale`` rounded to float32, in lowest terms.

        Raises VerifyError when ``scale`` is not a positive finite number.
        """
        single = float(np.float32(scale))
        if not 0 < single < float("inf"):
            raise VerifyError(f"a scale must be positive and finite, got {scale}")
        num, den = single.as_integer_ratio()
        zeros = (num & -num).bit_length() - 1
        return cls(num >> zeros, den.bit_length() - 1 - zeros)

    @property
    def fraction(self) -> Fraction:
        return Fraction(self.mult) / Fraction(2) ** self.shift

    def __float__(self) -> float:
        return float(self.fraction)

    def __str__(self) -> str:
        return f"{self.mult}*2^{-self.shift}"


@dataclass(frozen=True, slots=True)
class Quant:
    """Affine quantization: real = scale * (integer - zero_point).

    ``scale`` has one entry, or one per index of ``axis`` (per-channel; the zero point is then 0).
    ``bits`` is the width of the grid, which may be narrower than the element type that stores it.
    ``layout`` makes it mantissas that share exponents by block, or the widest of several widths by channel.
    """

    bits: int
    signed: bool
    scale: tuple[Dyadic, ...]
    zero_point: int = 0
    axis: int | None = None
    layout: Blocks | Widths | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 32:
            raise VerifyError(f"bits must be in [2, 32], got {self.bits}")
        if self.axis is None and len(self.scale) != 1:
            raise VerifyError("per-channel scales need an axis")
        if self.axis is not None and self.zero_point:
            raise VerifyError("per-channel quantization is symmetric: its zero point must be 0")
        if not self.qmin <= self.zero_point <= self.qmax:
            raise VerifyError(f"zero point {self.zero_point} outside [{self.qmin}, {self.qmax}]")
        if isinstance(self.layout, Blocks) and (not self.signed or self.bits > 7 or self.zero_point):
            raise VerifyError("shared exponents are for signed mantissas of 2 to 7 bits without a zero point")
        if isinstance(self.layout, Widths) and self.bits != max(b for _, b in self.layout.runs):
            raise VerifyError(f"bits must be those of the widest precision group, got {self.bits}")

    @property
    def qmin(self) -> int:
        return -(1 << (self.bits - 1)) << self._shift if self.signed else 0

    @property
    def qmax(self) -> int:
        return (1 << (self.bits - self.signed)) - 1 << self._shift

    @property
    def _shift(self) -> int:
        """The largest exponent."""
        return self.layout.top(self.bits) if isinstance(self.layout, Blocks) else 0

    @property
    def dtype(self) -> str:
        """The narrowest element type that stores the grid."""
        width = 8 if self.bits <= 8 else 16 if self.bits <= 16 else 32
        if width == 32 and not self.signed:
            raise VerifyError("unsigned grids wider than 16 bits have no element type")
        return f"{'i' if self.signed else 'u'}{width}"

    @property
    def plain(self) -> Quant:
        """The grid without a layout that holds all codes of this one."""
        return replace(self, bits=self.bits + self._shift, layout=None)

    def scales(self, rank: int) -> NDArray[np.float64]:
        """Scales as float64, shaped to broadcast against a tensor of ``rank`` dimensions."""
        flat = np.array([float(s) for s in self.scale], np.float64)
        if self.axis is None:
            return flat.reshape(())
        return flat.reshape([-1 if d == self.axis else 1 for d in range(rank)])

    def quantize(self, real: NDArray[Any]) -> NDArray[Any]:
        """Integer codes nearest to ``real`` (round half to even, saturating), as ``self.dtype``."""
        codes = real.astype(np.float64) / self.scales(real.ndim)
        if isinstance(self.layout, Blocks):
            codes = self.layout.nearest(codes, self.bits)
        low, high = self.limits(real.ndim)
        stored: NDArray[Any] = np.clip(np.rint(codes) + self.zero_point, low, high).astype(DTYPES[self.dtype])
        return stored

    def limits(self, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """The lowest and the highest code, shaped to broadcast against a tensor of ``rank`` dimensions."""
        if not isinstance(self.layout, Widths):
            return np.array(self.qmin), np.array(self.qmax)
        bits = self.layout.along(rank)
        return -np.left_shift(int(self.signed), bits - 1), np.left_shift(1, bits - self.signed) - 1

    def span(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The lowest and the highest real on the grid, shaped as ``limits`` are."""
        low, high = self.limits(rank)
        return self.dequantize(low), self.dequantize(high)

    def dequantize(self, codes: NDArray[Any]) -> NDArray[np.float32]:
        """The reals that ``codes`` stand for, rounded once to float32."""
        real = (codes.astype(np.float64) - self.zero_point) * self.scales(codes.ndim)
        return real.astype(np.float32)

    def __str__(self) -> str:
        axis = "" if self.axis is None else f"@{self.axis}"
        layout = "" if self.layout is None else f"[{self.layout}]"
        scales = ",".join(map(str, self.scale))
        return f"q{'i' if self.signed else 'u'}{self.bits}{axis}{layout}<{scales}:{self.zero_point}>"


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape (``BATCH`` allowed at axis 0 only), element type, and the grid the values lie on.

    An f32 tensor with a ``quant`` holds reals that lie on that grid (stage QUANTIZED); an integer
    tensor with one holds the codes themselves (stage INTEGER).
    """

    shape: tuple[int, ...]
    dtype: str
    quant: Quant | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise VerifyError(f"unknown element type '{self.dtype}'")
        for axis, dim in enumerate(self.shape):
            if dim < 0 and not (dim == BATCH and axis == 0):
                raise VerifyError(f"bad dimension {dim} at axis {axis} of {self.shape}")
        if self.quant is not None and self.quant.axis is not None:
            axis = self.quant.axis
            if not 0 <= axis < len(self.shape) or len(self.quant.scale) != self.shape[axis]:
                raise VerifyError(f"{len(self.quant.scale)} scales do not fit axis {axis} of {self.shape}")
        layout = self.quant.layout if self.quant is not None else None
        if isinstance(layout, Blocks) and len(self.shape) < 2:
            raise VerifyError(f"shared exponents need an axis 1, {self.shape} has none")
        if isinstance(layout, Widths) and (layout.axis >= len(self.shape) or layout.size != self.shape[layout.axis]):
            raise VerifyError(f"precision groups {layout} do not fit {self.shape}")

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def numpy(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        dims = "".join("Nx" if d == BATCH else f"{d}x" for d in self.shape)
        return f"{dims}{self.dtype}" + (f" {self.quant}" if self.quant else "")


class Const:
    """A read-only array addressed by the hash of its contents; equal hashes mean equal constants."""

    def __init__(self, array: NDArray[Any]) -> None:
        if array.dtype not in _SPELLING:
            raise VerifyError(f"constants cannot hold {array.dtype}")
        self.array: NDArray[Any] = np.array(array, order="C", copy=True)
        self.array.setflags(write=False)

    @property
    def dtype(self) -> str:
        return _SPELLING[self.array.dtype]

    @cached_property
    def digest(self) -> str:
        """sha256 over element type, shape and little-endian bytes."""
        head = f"{self.dtype}{self.array.shape}".encode()
        return hashlib.sha256(head + self.array.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Const({self.dtype}{list(self.array.shape)}, {self.digest[:12]})"
