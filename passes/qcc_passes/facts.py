"""What the passes measure on data and hand to one another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

from qcc.errors import PassError
from qcc.ir.layout import Blocks, Widths
from qcc.ir.types import Quant
from qcc_passes.histogram import Histogram
from qcc_passes.observers import Observer


@dataclass(frozen=True, slots=True)
class Ranges:
    """The distribution of every activation on calibration data, and the rule that picks grids from it.

    ``histograms`` is keyed by value name. ``weighted``, where a value has an entry, counts elements
    by what an error in them does to the outputs. ``observer`` is the rule of the ``calibrate`` pass.
    """

    histograms: Mapping[str, Histogram]
    weighted: Mapping[str, Histogram]
    observer: Observer

    def choose(self, names: Iterable[str], bits: int = 8) -> Quant:
        """The unsigned ``bits``-wide grid that the values ``names`` share.

        Raises PassError when one of them was never observed.
        """
        wanted = list(names)
        plain = self.histogram(wanted)
        known = [self.weighted[n] for n in wanted if n in self.weighted]
        return self.observer.choose(reduce(Histogram.merged, known) if len(known) == len(wanted) else plain, bits)

    def histogram(self, names: Iterable[str]) -> Histogram:
        """The unweighted distribution of all the values ``names`` together. Raises PassError."""
        wanted = list(names)
        if missing := [n for n in wanted if n not in self.histograms]:
            raise PassError(f"no range was measured for %{missing[0]}: run calibrate on the graph that is quantized")
        return reduce(Histogram.merged, (self.histograms[n] for n in wanted))


@dataclass(frozen=True, slots=True)
class BiasCorrections:
    """What ``bias-correct`` did: result names of the layers it corrected, and of those it left."""

    accepted: tuple[str, ...]
    refused: tuple[str, ...]


_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class WeightBlocks:
    """The blocks of weights that are to share exponents; None: there are to be none."""

    blocks: Blocks | None

    def of(self, shape: Sequence[int], bits: int) -> Blocks | None:
        """Those of weights [O, C, ...] of ``bits`` bits; None where they would not pay.

        Weights of 8 bits have none, nor those that read fewer channels than half a block.
        """
        if self.blocks is None or bits == _BYTE or 2 * shape[1] < self.blocks.size:
            return None
        return self.blocks


@dataclass(frozen=True, slots=True)
class BitPlan:
    """Bits of layers' weights (by result name) and of activations (by value name); others keep the defaults.

    ``widths`` are the bits of the output channels of layers where they are not all alike.
    """

    weight_bits: Mapping[str, int]
    activation_bits: Mapping[str, int]
    widths: Mapping[str, Widths] = field(default_factory=dict)
