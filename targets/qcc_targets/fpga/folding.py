"""Folding: how many multipliers a stage gets, and the cycles that a frame then takes, exactly.

``pe`` output channels are computed at once, each from ``simd`` input channels a cycle; one
requantization unit serves as many of the ``pe`` as there is time for, and ``units`` of them write as
many channels a cycle. A stage never idles by itself: a frame takes ``cycles`` of it, and a network as
long as its slowest stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

from qcc.errors import TargetError
from qcc_targets.fpga.stages import Concat, Contraction, Dataflow, Move, Pool, Reduce, Stage, Windowed


@dataclass(frozen=True, slots=True)
class Folding:
    """Channels at once: ``pe`` of the output, ``simd`` of the input for each of them (1 where channels do not mix)."""

    pe: int = 1
    simd: int = 1


def divisors(n: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, n + 1) if n % d == 0)


def output_channels(stage: Stage) -> int:
    """What ``pe`` must divide: the output channels that one input window serves."""
    if isinstance(stage, Contraction) and not stage.channelwise:
        return int(stage.weights.shape[1])
    if isinstance(stage, Concat):
        return gcd(*stage.runs, stage.output.channels)
    if isinstance(stage, Move):
        return gcd(stage.x.channels, stage.output.channels, stage.first)
    return stage.output.channels


def input_channels(stage: Stage) -> int:
    """What ``simd`` must divide."""
    if isinstance(stage, Contraction) and not stage.channelwise:
        return int(stage.weights.shape[4])
    return 1


def legal(stage: Stage) -> tuple[Folding, ...]:
    """All foldings that ``stage`` can have."""
    return tuple(Folding(p, s) for p in divisors(output_channels(stage)) for s in divisors(input_channels(stage)))


def check(stage: Stage, folding: Folding) -> None:
    """Raise TargetError unless ``stage`` can be folded so."""
    for name, value, total in (
        ("pe", folding.pe, output_channels(stage)),
        ("simd", folding.simd, input_channels(stage)),
    ):
        if value < 1 or total % value:
            raise TargetError(
                f"{stage.op} %{stage.name}: {name} {value} does not divide {total}; it may be {divisors(total)}"
            )


def reduction(stage: Stage, folding: Folding) -> int:
    """Cycles that one sum takes."""
    if isinstance(stage, Contraction):
        taps = prod(stage.weights.shape[2:4])
        return taps * input_channels(stage) // folding.simd
    return prod(stage.window.kernel) if isinstance(stage, Pool) else 1


def units(stage: Stage, folding: Folding) -> int:
    """Channels that the stage writes a cycle, each through a requantization unit of its own."""
    steps = reduction(stage, folding)
    return next(u for u in divisors(folding.pe) if folding.pe // u <= steps)


def input_lanes(stage: Stage, folding: Folding, slot: int) -> int:
    """Elements of input ``slot`` that the stage takes a cycle."""
    if isinstance(stage, Contraction) and not stage.channelwise and slot == 0:
        return folding.simd
    if isinstance(stage, Windowed) and slot > 0:
        return units(stage, folding)
    return folding.pe


def output_lanes(stage: Stage, folding: Folding) -> int:
    return units(stage, folding)


def cycles(stage: Stage, folding: Folding) -> int:
    """Cycles of a frame, when inputs and outputs never wait: the slower of computing and taking the inputs."""
    taken = max(s.size // input_lanes(stage, folding, i) for i, s in enumerate(stage.inputs))
    if isinstance(stage, Reduce):
        return taken + stage.output.size // folding.pe
    if isinstance(stage, Windowed):
        return max(taken, stage.output.size // folding.pe * reduction(stage, folding))
    return stage.output.size // folding.pe


def frame_cycles(network: Dataflow, foldings: dict[str, Folding]) -> int:
    """Cycles between two frames of the whole network: those of its slowest stage; ``foldings`` by stage name."""
    return max(cycles(s, foldings[s.name]) for s in network.stages)
