"""Products of codes and weights: shifts where all weights are powers of two, several to a multiplier where it is wide.

One wide multiplier yields the products of a code with several weights, w0 + w1 * 2**s + …: their sum of
p0 + p1 * 2**s + … comes apart from the lowest on. Where the products need s + 1 bits, a field's highest bit shows
in the next one's lowest, which is known to be the product of the factors' lowest bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.ir.bounds import Interval
from qcc_targets.fpga.device import Device
from qcc_targets.fpga.folding import Folding
from qcc_targets.fpga.rtl.circuit import Circuit, Signal, literal
from qcc_targets.fpga.stages import Contraction

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Ports:
    """Widths of the factors of a device's multiplier, the wider one first: (27, 18) for a DSP48E2."""

    wide: int
    narrow: int

    @classmethod
    def of(cls, device: Device) -> Ports | None:
        """Those of ``device``, if it has multipliers."""
        return None if device.dsp is None else cls(*device.dsp.factors)


@dataclass(frozen=True, slots=True)
class Packing:
    """``count`` products of ``bits`` bits each in one multiplier, ``stride`` bits apart."""

    count: int
    bits: int
    stride: int


def packing(codes: Interval, weights: Interval, ports: Ports | None) -> Packing:
    """The most products of one code that share a multiplier of ``ports``; one where it is None."""
    bits = (codes * weights).bits
    best = Packing(1, bits, bits)
    if ports is None or codes.bits > ports.narrow:
        return best
    for stride in (bits, bits - 1):
        count = best.count
        while joined(weights, count + 1, stride).bits <= ports.wide:
            count += 1
        if count > best.count:
            best = Packing(count, bits, stride)
    return best


def joined(weights: Interval, count: int, stride: int) -> Interval:
    """What ``count`` weights are together."""
    ones = sum(1 << (stride * i) for i in range(count))
    return Interval(min(weights.low, 0) * ones, max(weights.high, 0) * ones)


def multipliers(stage: Contraction, folding: Folding, ports: Ports | None) -> int:
    """The multipliers of the products of ``stage``: none where these are shifts."""
    if powers_of_two(stage.weights):
        return 0
    if stage.channelwise:
        return folding.pe
    codes = stage.x.codes - stage.zero_point
    weights = Interval(int(stage.weights.min()), int(stage.weights.max()))
    inside = any(stage.window.pads)
    count = packing(codes.with_zero() if inside else codes, weights, ports).count
    return folding.simd * -(-folding.pe // count)


def multiply_all(circuit: Circuit, code: Signal, weights: Sequence[Signal], ports: Ports | None) -> list[Signal]:
    """The products of ``code`` with each of ``weights``."""
    plan = packing(code.codes, _hull(weights), ports)
    products: list[Signal] = []
    for start in range(0, len(weights), plan.count):
        some = weights[start : start + plan.count]
        products += _packed(circuit, code, some, plan) if len(some) > 1 else [circuit.multiply(code, some[0])]
    return products


def _hull(weights: Sequence[Signal]) -> Interval:
    return Interval(min(w.codes.low for w in weights), max(w.codes.high for w in weights))


def _packed(circuit: Circuit, code: Signal, weights: Sequence[Signal], plan: Packing) -> list[Signal]:
    weights, time = circuit.together(weights)
    together = circuit.register(_side_by_side(circuit, weights, plan.stride, time))
    # The lowest bits of the products, at the time of the product.
    (code_then, *weights_then), _ = circuit.together([code, *weights])
    lowest = [circuit.flag(f"{_bit(circuit, code_then)} & {_bit(circuit, w)}", w.time or 0) for w in weights_then]
    total = circuit.multiply(code, together)
    lowest = [circuit.at(b, total.time or 0) for b in lowest]
    products = []
    for i in range(len(weights) - 1):
        stride, codes = plan.stride, code.codes * weights[i].codes
        if total.bits <= stride:  # Nothing large is left above: let the sign fill the field.
            total = circuit.wire(total.text, Interval(-(1 << stride), (1 << stride) - 1), total.time)
        if plan.stride == plan.bits:
            text = f"$signed({total.text}[{stride - 1}:0])"
        else:
            text = f"$signed({{{total.text}[{stride}] ^ {lowest[i + 1].text}, {total.text}[{stride - 1}:0]}})"
        low = circuit.wire(text, codes, total.time)
        products.append(low)
        # What is above counts one less where this product is negative.
        rest = Interval(total.codes.low >> stride, (total.codes.high >> stride) + 1)
        negative = f"$signed({{1'b0, {low.text}[{low.bits - 1}]}})"
        total = circuit.wire(f"({total.text} >>> {stride}) + {negative}", rest, total.time)
    products.append(circuit.wire(total.text, code.codes * weights[-1].codes, total.time))
    return [circuit.register(p) for p in products]


def _side_by_side(circuit: Circuit, weights: Sequence[Signal], stride: int, time: int | None) -> Signal:
    """w0 + w1 * 2**stride + …: fields, of which each takes one from the next where it is negative."""
    last = circuit.wire(weights[-1].text, weights[-1].codes, time)
    for weight in reversed(weights[:-1]):
        low = circuit.wire(weight.text, weight.codes, time)
        codes = Interval((last.codes.low << stride) + low.codes.low, (last.codes.high << stride) + low.codes.high)
        above = Interval(last.codes.low - 1, last.codes.high)
        less = circuit.wire(f"{last.text} - $signed({{1'b0, {low.text}[{low.bits - 1}]}})", above, time)
        spread = circuit.wire(low.text, Interval(-(1 << (stride - 1)), (1 << (stride - 1)) - 1), time)
        last = circuit.wire(f"$signed({{{less.text}, {spread.text}}})", codes, time)
    return last


def _bit(circuit: Circuit, signal: Signal) -> str:
    """The lowest bit of ``signal``, which may be an expression."""
    return f"{circuit.wire(signal.text, signal.codes, signal.time).text}[0]"


def powers_of_two(weights: Array) -> bool:
    """Whether all weights are 0 or a power of two, up to their sign."""
    sizes = np.abs(weights.astype(np.int64))
    return bool(np.all(sizes & (sizes - 1) == 0))


def encode_powers(weights: Array) -> Array:
    """Weights that are powers of two as bits: not zero, negative, exponent."""
    sizes = np.abs(weights.astype(np.int64))
    exponents = np.where(sizes > 0, np.log2(np.maximum(sizes, 1)).astype(np.int64), 0)
    encoded: Array = (exponents << 2) | ((weights < 0).astype(np.int64) << 1) | (sizes > 0)
    return encoded


def shift_by(circuit: Circuit, code: Signal, weight: Signal, weights: Interval) -> Signal:
    """The product of ``code`` with an encoded ``weight``, among ``weights``: a shift, and perhaps a change of sign."""
    if not weights.low and not weights.high:
        return literal(0)
    (code, weight), time = circuit.together([code, weight])
    if weight.constant:
        size = (1 << (weight.codes.low >> 2)) * (weight.codes.low & 1)
        return circuit.multiply(code, literal(-size if weight.codes.low & 2 else size))
    codes = code.codes * weights
    bits = codes.with_zero().bits + 1
    field = circuit.wire(weight.text, weight.codes, time)
    span = Interval(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    steps = f"{field.text}[{field.bits - 1}:2]" if field.bits > 2 else "0"
    shifted = circuit.wire(f"{bits}'({code.text}) <<< {steps}", span, time)
    signed = f"({field.text}[1] ? -{shifted.text} : {shifted.text})"
    return circuit.register(circuit.wire(f"{field.text}[0] ? {signed} : {bits}'sd0", codes.with_zero(), time))
