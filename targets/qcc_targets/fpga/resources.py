"""What a stage takes of a device, estimated from its structure.

Memories are counted as they are written: one word for a step. Multipliers are those of the sums and of the
requantization units. LUTs and flip-flops are linear in the widths of what is added, kept and passed on: non-negative
least squares over stages of real networks that yosys synthesized (``tests/bench/fpga_synthesis.py`` sets what it
estimates beside what is counted).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.ir.bounds import Interval
from qcc_targets.fpga.device import Device
from qcc_targets.fpga.folding import Folding, input_lanes, output_lanes
from qcc_targets.fpga.rtl.products import Ports, multipliers, powers_of_two
from qcc_targets.fpga.rtl.window import plan_window
from qcc_targets.fpga.stages import Contraction, Linear, Lookup, Pool, Product, Reduce, Requant, Stage, Windowed

Array = NDArray[Any]

SMALL: Final = 4096
"""Bits of a constant table that is made of logic."""
_SHALLOW: Final = {6: 64, 4: 16}
_LIGHT: Final = {6: 2048, 4: 0}
"""Words, and bits, up to which a memory with a write port is made of logic, by the inputs of a LUT."""
_SMALLEST: Final = 9
"""Bits of the smallest product that gets a multiplier slice."""

FEATURES: Final = ("products", "sums", "epilogue", "reduced", "words", "tables")

LUTS: Final[Mapping[int, tuple[float, ...]]] = {
    6: (0.914, 2.164, 4.164, 7.674, 0.0, 0.111),
    4: (1.571, 2.076, 6.707, 10.0, 0.0, 0.173),
}
FLIP_FLOPS: Final[Mapping[int, tuple[float, ...]]] = {
    6: (1.373, 2.054, 2.589, 0.0, 0.635, 0.023),
    4: (1.246, 3.202, 5.836, 1.0, 1.797, 0.044),
}
"""Per unit of each of ``FEATURES``, by the inputs of a LUT."""

_APART: Final = {"luts": 5, "flip_flops": 24}
"""What a product that shares a slice takes besides: it is taken apart, and kept and added up outside."""


@dataclass(slots=True)
class Structure:
    """What the module of a stage is made of.

    ``tables`` and ``buffers`` are memories, (words, bits of a word), without and with a write port; ``products`` are
    multipliers by the widths of their factors, ``apart`` counts products that share one; the others are bits of what
    is added up, kept, requantized (apart: behind a reduction over all pixels) and passed on.
    """

    tables: list[tuple[int, int]] = field(default_factory=list)
    buffers: list[tuple[int, int]] = field(default_factory=list)
    products: dict[tuple[int, int], int] = field(default_factory=dict)
    joined: int = 0
    apart: int = 0
    sums: int = 0
    epilogue: int = 0
    reduced: int = 0
    wires: int = 0

    def features(self) -> tuple[float, ...]:
        small = sum(words * bits for words, bits in self.tables if words * bits <= SMALL)
        return tuple(map(float, (self.joined, self.sums, self.epilogue, self.reduced, self.wires, small)))


def estimate(stage: Stage, folding: Folding, device: Device) -> dict[str, float]:
    """What ``stage`` takes, by resource; memory in blocks of the device's first kind."""
    found = structure(stage, folding, Ports.of(device))
    features, inputs = found.features(), device.lut_inputs
    dsps, logic = _multipliers(found.products, device)
    logic += _APART["luts"] * found.apart
    blocks = sum(device.memory.blocks(words, bits) for words, bits in found.tables if words * bits > SMALL)
    for words, bits in found.buffers:
        if words > _SHALLOW[inputs] and words * bits > _LIGHT[inputs]:
            blocks += device.memory.blocks(words, bits)
        else:
            logic += _memory_luts(words, bits, inputs)
    return {
        "luts": float(np.dot(LUTS[inputs], features)) + logic,
        "flip_flops": float(np.dot(FLIP_FLOPS[inputs], features)) + _APART["flip_flops"] * found.apart,
        "dsps": float(dsps),
        "memory_blocks": float(blocks),
    }


def _memory_luts(words: int, bits: int, inputs: int) -> int:
    """LUTs of a small memory: AMD's RAM32M16 and RAM64M8 are 8 LUTs for 14 and 7 bits, Lattice's DPR16X4 4 for 4."""
    if inputs == 4:
        return 4 * math.ceil(bits / 4) * math.ceil(words / 16)
    return 8 * math.ceil(bits / (14 if words <= 32 else 7)) * math.ceil(words / 64)


def structure(stage: Stage, folding: Folding, ports: Ports | None = None) -> Structure:
    lanes, side = output_lanes(stage, folding), folding.pe * folding.simd
    found = Structure()
    if isinstance(stage, Windowed):
        taken = input_lanes(stage, folding, 0)
        found.buffers.append((1 << plan_window(stage, taken).address, stage.x.bits * taken))
    accumulator = 0
    if isinstance(stage, (Contraction, Pool, Reduce)):
        accumulator = stage.accumulator.bits
        found.sums = folding.pe * accumulator
    if isinstance(stage, Contraction):
        code, weight = (stage.x.codes - stage.zero_point).with_zero().bits, stage.weight_bits
        found.tables.append((stage.weights.size // side, side * weight))
        count = multipliers(stage, folding, ports)
        if count == side:
            found.products[code, weight] = side
        elif count and ports is not None:
            found.products[ports.wide, ports.narrow] = count
            found.apart = side
        found.joined = side * (code + weight)
    elif isinstance(stage, (Pool, Reduce)):
        found.joined = folding.pe * stage.inputs[0].bits
        if isinstance(stage, Reduce):
            found.reduced, found.sums, found.joined = found.sums, 0, 0
            found.buffers.append((stage.inputs[0].channels // folding.pe, folding.pe * accumulator))
    elif isinstance(stage, Product):
        a, b = (s.codes.bits for s in stage.inputs)
        accumulator, found.products[a, b] = a + b, lanes
    elif isinstance(stage, Lookup):
        found.tables += [(stage.table.size, stage.output.bits)] * lanes
    if isinstance(stage, (Contraction, Pool, Reduce, Linear, Product)) and stage.requant is not None:
        _epilogue(stage, stage.requant, lanes, accumulator, found)
    if isinstance(stage, Reduce):
        found.epilogue = 0
    found.wires = stage.output.bits * lanes
    found.wires += sum(s.bits * input_lanes(stage, folding, i) for i, s in enumerate(stage.inputs))
    return found


def _epilogue(stage: Stage, q: Requant, lanes: int, accumulator: int, found: Structure) -> None:
    """Adds the constants, multipliers and adders of the requantization units."""
    if isinstance(stage, Linear):
        factors = [(s.codes.bits, m) for s, m in zip(stage.inputs, stage.multipliers, strict=True)]
    else:
        factors = [(accumulator, q.m)] + ([(stage.inputs[-1].codes.bits, q.mr)] if q.mr is not None else [])
    total = 0
    for bits, array in factors:
        factor = _range(array).with_zero().bits
        total = max(total, bits + factor + 1)
        if not powers_of_two(array):
            found.products[bits, factor] = found.products.get((bits, factor), 0) + lanes
    found.epilogue = lanes * total * len(factors)
    for array in (q.c, *(a for _, a in factors)):
        if not (array == array.flat[0]).all():
            found.tables.append((array.size // lanes, lanes * _range(array).bits))


def _range(array: Array) -> Interval:
    return Interval(int(array.min()), int(array.max()))


def _multipliers(products: Mapping[tuple[int, int], int], device: Device) -> tuple[int, float]:
    """Slices for the products, and the LUTs of those that are too small for one or find none."""
    dsps, logic = 0, 0.0
    for (a, b), count in products.items():
        if device.dsp is None or a + b < _SMALLEST:
            logic += count * a * b * 1.1
        else:
            wide, narrow = device.dsp.factors
            dsps += count * _parts(max(a, b), wide) * _parts(min(a, b), narrow)
    return dsps, logic


def _parts(bits: int, width: int) -> int:
    """Into how many factors of ``width`` bits one of ``bits`` is cut; all but the first lose a bit for their sign."""
    return 1 if bits <= width else 1 + math.ceil((bits - width) / (width - 1))
