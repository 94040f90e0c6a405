"""What a layer will take of a device at some widths, before it is quantized: costs for choosing bits."""

from __future__ import annotations

import math

import numpy as np

from qcc.errors import TargetError
from qcc.ir.bounds import Interval
from qcc.ir.graph import Op
from qcc.verify.windows import Window
from qcc_targets.fpga.device import Device
from qcc_targets.fpga.folding import cycles, legal
from qcc_targets.fpga.resources import estimate
from qcc_targets.fpga.stages import Contraction, Requant, Stream


def layer_costs(o: Op, weight_bits: int, activation_bits: int, device: Device, most: int) -> dict[str, float]:
    """What ``resources.estimate`` says of a conv2d or dense of a FLOAT graph, by resource.

    The folding is the one that takes the smallest shares of ``device`` of those whose frame takes at most ``most``
    cycles. Raises TargetError where none does.
    """
    stage = drafted(o, weight_bits, activation_bits)
    foldings = [f for f in legal(stage) if cycles(stage, f) <= most]
    if not foldings:
        least = min(cycles(stage, f) for f in legal(stage))
        raise TargetError(f"{o.kind} %{stage.name}: a frame takes {least} cycles of it at least, not {most}")
    limits = device.limits()
    found = [estimate(stage, f, device) for f in foldings]
    return min(found, key=lambda e: sum(count / (limits[name] or 1) for name, count in e.items()))


def drafted(o: Op, weight_bits: int, activation_bits: int) -> Contraction:
    """The stage that ``o`` becomes: unsigned codes, weights of the whole range, requantized to as many bits by 31."""
    weights, codes = o.operands[1].type.shape, Interval(0, (1 << activation_bits) - 1)
    outputs, channels = weights[:2]
    if o.kind == "conv2d":
        groups, window = o.int_attr("groups"), Window.of(o)
        (read, written) = (v.type.shape[2:] for v in (o.operands[0], o.result))
    else:
        groups, window = 1, Window((1, 1), (1, 1), (0, 0, 0, 0), (1, 1))
        read = written = 1, math.prod(o.result.type.shape[1:-1])
    x = Stream(o.operands[0].name, read[0], read[1], channels * groups, codes)
    y = Stream(o.result.name, written[0], written[1], outputs, codes)
    half = 1 << (weight_bits - 1)
    array = np.full((groups, outputs // groups, *(weights[2:] or (1, 1)), channels), -half)
    array.flat[0] = half - 1
    sums = codes * Interval(-half, half - 1)
    bound = math.prod(array.shape[2:])
    factors, offsets = np.arange(1, outputs + 1) + (1 << 30), np.arange(outputs) << 24
    requant = Requant(factors, offsets, None, 31, codes.low, codes.high)
    return Contraction(o.kind, (x,), y, window, array, 0, requant, Interval(sums.low * bound, sums.high * bound))
