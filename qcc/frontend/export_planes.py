"""Operands of ConvInteger and MatMulInteger: 8-bit planes whose weighted sum is the operand.

The nodes take 8-bit operands with one zero point each. A wider operand, less its zero point, is cut
into bytes, v = sum of 2**(8 i) * byte_i with a signed last byte, and the products are summed in int64.

Weights and right-hand operands are stored unsigned, signed codes with 128 added to them and to their
zero point: onnxruntime multiplies unsigned by signed bytes with saturating 16-bit instructions on
processors that lack VNNI, and would not be exact there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.frontend.export_builder import Builder
from qcc.frontend.export_packed import unpacked, worth_packing
from qcc.ir.graph import Op, Value
from qcc.ir.packing import lowest

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Plane:
    """2**shift * (tensor - zero_point), with an 8-bit ``tensor`` of element type ``dtype``."""

    tensor: str
    zero_point: int
    dtype: type[np.integer[Any]] = np.uint8
    shift: int = 0


def zero_point(value: Value) -> int:
    return value.type.quant.zero_point if value.type.quant is not None else 0


def weight_planes(b: Builder, stem: str, codes: Array, zero: int, bits: int | None = None) -> list[Plane]:
    """Planes of ``codes - zero``, for constant ``codes``; int8 ones of ``bits`` bits are stored packed."""
    if bits is not None and codes.dtype == np.int8 and worth_packing(codes, bits):
        return [Plane(unpacked(b, stem, codes, bits), zero - lowest("i8", bits))]
    if codes.dtype == np.uint8:
        return [Plane(b.const(codes, stem), zero)]
    if codes.dtype == np.int8:
        return [Plane(b.const((codes.astype(np.int16) + 128).astype(np.uint8), stem), zero + 128)]
    rest, shift, planes = codes.astype(np.int64) - zero, 0, []
    while rest.min() < -128 or rest.max() > 127:
        planes.append(Plane(b.const((rest & 255).astype(np.uint8), stem), 0, shift=shift))
        rest, shift = rest >> 8, shift + 8
    return [*planes, Plane(b.const((rest + 128).astype(np.uint8), stem), 128, shift=shift)]


def activation_planes(b: Builder, o: Op, slot: int, tensor: str, *, unsigned: bool = False) -> list[Plane]:
    """Planes of the operand ``slot`` less its zero point; all of them uint8 when ``unsigned``."""
    value = o.operands[slot]
    zero, stem = zero_point(value), f"{o.result.name}/byte"
    if value.type.dtype == "u8":
        return [Plane(tensor, zero)]
    if value.type.dtype == "i8" and not unsigned:
        return [Plane(tensor, zero, np.int8)]
    if value.type.dtype == "i8":
        return [Plane(_raised(b, b.cast(tensor, np.int64, stem), stem), zero + 128)]
    rest = b.node("Sub", [b.cast(tensor, np.int64, stem), b.scalar(zero, np.int64, "zero_point")], stem)
    planes, shift = [], 0
    for _ in range(value.type.numpy.itemsize):
        low = b.node("Mod", [rest, b.scalar(256, np.int64, "base")], stem)
        planes.append(Plane(b.cast(low, np.uint8, stem), 0, shift=shift))
        rest = b.node("Div", [b.node("Sub", [rest, low], stem), b.scalar(256, np.int64, "base")], stem)
        shift += 8
    return [*planes, Plane(_raised(b, rest, stem), 128, shift=shift)]


def _raised(b: Builder, signed: str, stem: str) -> str:
    return b.cast(b.node("Add", [signed, b.scalar(128, np.int64, "bias")], stem), np.uint8, stem)


def sum_of_products(b: Builder, o: Op, kind: str, left: Sequence[Plane], right: Sequence[Plane], **attrs: Any) -> str:
    """The node ``kind`` over every pair of planes, weighted and summed: int32, or int64 when there are several."""
    total = ""
    for x in left:
        for w in right:
            zeros = [b.scalar(p.zero_point, p.dtype, "zero_point") for p in (x, w)]
            acc = b.node(kind, [x.tensor, w.tensor, *zeros], f"{o.result.name}/acc", **attrs)
            if len(left) == len(right) == 1:
                return acc
            scale = b.scalar(1 << (x.shift + w.shift), np.int64, "scale")
            term = b.node("Mul", [b.cast(acc, np.int64, f"{o.result.name}/acc"), scale], f"{o.result.name}/plane")
            total = b.node("Add", [total, term], f"{o.result.name}/acc") if total else term
    return total
