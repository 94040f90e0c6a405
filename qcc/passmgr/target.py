"""The target protocol: what a device can do, and how a graph becomes files it can run."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import BaseModel, ConfigDict

from qcc.errors import TargetError
from qcc.ir.graph import Graph, Op
from qcc.passmgr.spelling import spell

if TYPE_CHECKING:
    from qcc.passmgr.base import Pass
    from qcc.passmgr.context import PassContext

NARROW_BITS: Final = frozenset(range(2, 9))
"""All widths of codes that fit a byte; where a device clamps codes and counts bytes, it has them all."""


def machine() -> str:
    """The processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


class Capabilities(BaseModel):
    """Plain data, so that passes can ask what a device supports without knowing the device."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ops: frozenset[str] | None = None
    """Integer operations that the device runs; None: all of them."""
    weight_bits: frozenset[int] = frozenset({8})
    activation_bits: frozenset[int] = frozenset({8})
    accumulator_bits: int = 32


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was measured for one operation: its result's name, the choice, seconds before and with it."""

    result: str
    choice: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Program:
    """A program that a target can use: where it lies, or None, and how to install it."""

    name: str
    purpose: str
    """Continues a sentence: "simulates the hardware"."""
    install: str
    path: str | None


class Target(BaseModel, ABC):
    """A device: a frozen value whose fields are its options; plug-ins in the group ``qcc.targets``.

    ``backend`` names the ``qcc.backends`` plug-in that runs what ``build`` writes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    backend: ClassVar[str]

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What the device can do."""

    def device(self) -> str:
        """What latencies are of: the target with its options, and the machine where they are measured on this one."""
        spelled = spell(self.name, self.model_dump(mode="json", exclude_defaults=True))
        return spelled if type(self).time_layers is Target.time_layers else f"{spelled} on {machine()}"

    def time_layers(self, artifact: Path) -> Mapping[str, float] | None:
        """Seconds that each layer of an artifact for this target takes within one call, by the name of its result.

        None where the device cannot be measured from here. Raises TargetError, ArtifactError.
        """
        return None

    def layer_costs(self, o: Op, weight_bits: int, activation_bits: int) -> Mapping[str, float]:
        """What the conv2d or dense ``o`` of a FLOAT graph takes of the device, by metrics that budgets may bound.

        The costs of layers add up. Empty where the device counts nothing but what all devices do.
        Raises TargetError for a layer that does not fit it.
        """
        return {}

    def programs(self) -> Sequence[Program]:
        """The programs that this target uses where they are installed, beside what it needs for any build."""
        return ()

    def passes(self) -> Sequence[Pass]:
        """Legalization this target needs, run after every portable pass (INTEGER to INTEGER)."""
        return ()

    def tune(self, graph: Graph, table: Path, ctx: PassContext) -> Sequence[Tuned]:
        """Measure on this machine how ``graph`` is best built, and keep what was found in the file ``table``.

        What the file holds already is not measured again. Raises TargetError where nothing can be tuned.
        """
        raise TargetError(f"the target '{self.name}' has nothing to tune")

    @abstractmethod
    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        """Write the device's files under the existing folder ``out`` and return their paths.

        ``graph`` is at stage INTEGER. Raises TargetError.
        """
