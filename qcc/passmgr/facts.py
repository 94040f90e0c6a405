"""The facts that the driver itself brings: data to calibrate on, and costs. Passes define their own beside them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Op


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """Model inputs as the graph's own (real-valued) inputs take them, first axis = sample.

    ``arrays`` maps input names to float32 arrays [samples, ...]; ``labels`` is optional.
    """

    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None = None
    digest: str = field(default="")

    @property
    def samples(self) -> int:
        return min((len(a) for a in self.arrays.values()), default=0)

    def batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        count = min(self.samples, limit or self.samples)
        for start in range(0, count, size):
            yield {k: a[start : min(start + size, count)] for k, a in self.arrays.items()}

    def check(self, graph: Graph) -> None:
        """Raise ConfigError unless every graph input has a fitting, finite, non-empty array, and labels fit these."""
        names = [v.name for v in graph.inputs]
        for extra in sorted(set(self.arrays) - set(names)):
            raise ConfigError(f"data has an array '{extra}', but the model's inputs are {', '.join(names)}")
        for value in graph.inputs:
            if (array := self.arrays.get(value.name)) is None:
                raise ConfigError(f"data has no array for the input '{value.name}'; arrays: {', '.join(self.arrays)}")
            check_array(value.name, array, value.type.shape)
        if self.labels is not None and len(self.labels) != self.samples:
            raise ConfigError(f"{len(self.labels)} labels do not fit {self.samples} samples")


@dataclass(frozen=True, slots=True)
class DeviceCosts:
    """What the target counts of a layer at its weights' and activations' bits: ``Target.layer_costs``."""

    of: Callable[[Op, int, int], Mapping[str, float]]


def check_array(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise ConfigError unless ``array`` is non-empty, numeric, finite and [samples, *shape[1:]]."""
    if array.dtype.kind not in "fiub":
        raise ConfigError(f"data array '{name}' has dtype {array.dtype}; numbers are needed")
    if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
        raise ConfigError(f"data array '{name}' has shape {array.shape}; the input takes [samples, {shape[1:]}]")
    if array.shape[0] == 0:
        raise ConfigError(f"data array '{name}' holds no samples")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ConfigError(f"data array '{name}' holds NaN or infinity")
