"""Foldings for a device: the most frames a second that it holds, or as many as are wanted with the least resources."""

from __future__ import annotations

from dataclasses import dataclass

from qcc.errors import BudgetError
from qcc_targets.fpga.allocate import Allocation, Option, fastest, smallest
from qcc_targets.fpga.device import Device, load_device, shipped
from qcc_targets.fpga.folding import Folding, cycles, legal
from qcc_targets.fpga.resources import estimate
from qcc_targets.fpga.stages import Dataflow, Stage

_WIDEST = 4096
"""Bits of the widest word that a stage may read or write a cycle."""


@dataclass(frozen=True, slots=True)
class Found:
    """``foldings`` by stage name, and what they were chosen for: cycles between frames, and resources."""

    foldings: dict[str, Folding]
    allocation: Allocation


def find_foldings(network: Dataflow, device: Device, most: int | None = None) -> Found:
    """The fastest foldings that ``device`` holds, or the smallest with at ``most`` so many cycles between frames.

    Raises BudgetError where the device is too small, naming the smallest shipped one that is not.
    """
    stages = [_options(s, device) for s in network.stages]
    try:
        return _found(network, _allocate(stages, device, most))
    except BudgetError as e:
        raise BudgetError(f"{device.name}: {e}; {_larger(network, most)}") from e


def _allocate(stages: list[list[Option]], device: Device, most: int | None) -> Allocation:
    limits = {name: float(limit) for name, limit in device.limits().items()}
    return fastest(stages, limits) if most is None else smallest(stages, most, limits)


def _found(network: Dataflow, allocation: Allocation) -> Found:
    pairs = zip(network.stages, allocation.options, strict=True)
    return Found({s.name: Folding(o.pe, o.simd) for s, o in pairs}, allocation)


def _options(stage: Stage, device: Device) -> list[Option]:
    widest = max(s.bits for s in (*stage.inputs, stage.output))
    fitting = [f for f in legal(stage) if max(f.pe, f.simd) * widest <= _WIDEST]
    return [Option(f.pe, f.simd, cycles(stage, f), estimate(stage, f, device)) for f in fitting]


def _larger(network: Dataflow, most: int | None) -> str:
    """What holds the network, of the devices that ship, by their number of LUTs."""
    for device in sorted(map(load_device, shipped()), key=lambda d: d.luts):
        try:
            _allocate([_options(s, device) for s in network.stages], device, most)
        except BudgetError:
            continue
        return f"the smallest shipped device that holds it is {device.name}"
    return "no shipped device holds it"
