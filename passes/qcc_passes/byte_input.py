"""Raw bytes (of a camera, say) as the graph's input, with the normalization folded into the first layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from qcc.data import image_layout
from qcc.errors import ConfigError
from qcc.ir.graph import Graph, Op, Stage, Value, fresh_name, op
from qcc.ir.types import Dyadic, Quant, TensorType
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.byte_carry import Carried, carry

BYTES: Final = Quant(8, False, (Dyadic(1, 0),))
"""The grid of raw bytes: every real is its own code."""

_TO: Final = {"NHWC": (0, 2, 3, 1), "NCHW": (0, 3, 1, 2)}
"""Permutations to a layout from the other one."""


class ByteInput(Pass):
    """Take raw bytes: fold real = (byte · scale − mean) / std into the first layers.

    ``mean`` and ``std`` have one entry, or one per channel. ``layout`` is that of the bytes; without
    one it is the model's own. ``input`` names the graph input; it may be left out where there is one.

    The new input, of the old name, has element type f32 and the grid of bytes. Data for the new graph
    are bytes: float32 or uint8 arrays that hold 0…255, in the layout of the bytes. ``to_real`` gives
    what the graph before the pass takes in their place.

    Folding is exact except where a convolution pads after a nonzero mean: zero then becomes the
    nearest byte of each channel, so borders move by half a byte at most; a warning says where zero
    lies outside of 0…255. Raises ConfigError where options do not fit the graph, PassError where
    an output of the graph would become bytes.
    """

    name: ClassVar[str] = "byte-input"
    accepts: ClassVar[Stage] = Stage.FLOAT
    yields: ClassVar[Stage] = Stage.FLOAT

    input: str | None = None
    mean: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    std: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    scale: float = Field(default=1.0, gt=0)
    layout: Literal["NCHW", "NHWC"] | None = None

    @model_validator(mode="after")
    def _positive_std(self) -> ByteInput:
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        old = self.graph_input(graph)
        scale, offset = self._affine(old)
        new, first = self._new_input(old, graph)
        value = first[-1].result if first else new
        self._turn_data(ctx, old, new)
        return carry(graph, new, Carried(value, scale, offset), first, ctx.log)

    def graph_input(self, graph: Graph) -> Value:
        """The input of ``graph`` that takes bytes. Raises ConfigError."""
        names = ", ".join(v.name for v in graph.inputs)
        if self.input is None and len(graph.inputs) != 1:
            raise ConfigError(f"byte-input: the model has the inputs {names}; say which with 'input'")
        found = next((v for v in graph.inputs if self.input in (None, v.name)), None)
        if found is None:
            raise ConfigError(f"byte-input: no input '{self.input}'; the model has {names}")
        if found.type.dtype != "f32" or found.type.quant is not None or found.type.rank < 2:
            raise ConfigError(f"byte-input: input '{found.name}' is {found.type}; a batch of reals is needed")
        return found

    def to_real(self, codes: NDArray[Any], graph: Graph) -> NDArray[np.float32]:
        """What ``graph``, from before the pass, takes for ``codes`` (bytes [samples, …]). Raises ConfigError."""
        value = self.graph_input(graph)
        scale, offset = self._affine(value)
        moved = codes.transpose(_TO[self._model_layout(value)]) if self._turned(value) else codes
        real: NDArray[np.float32] = (moved.astype(np.float64) * scale + offset).astype(np.float32)
        return real

    def _affine(self, value: Value) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scale and offset, of the value's rank, in the layout of the model."""
        mean, std = np.array(self.mean), np.array(self.std)
        shape = [1] * value.type.rank
        if max(mean.size, std.size) > 1:
            axis = 3 if value.type.rank == 4 and self._model_layout(value) == "NHWC" else 1
            shape[axis] = -1
            channels = value.type.shape[axis]
            for field, given in (("mean", mean), ("std", std)):
                if given.size not in (1, channels):
                    raise ConfigError(
                        f"byte-input: {field} has {given.size} entries, '{value.name}' {channels} channels"
                    )
        mean, std = np.broadcast_arrays(mean, std)
        return (self.scale / std).reshape(shape), (-mean / std).reshape(shape)

    def _model_layout(self, value: Value) -> str:
        try:
            return image_layout(value.name, value.type.shape)
        except ConfigError as e:
            raise ConfigError(f"byte-input: {e}") from None

    def _turned(self, value: Value) -> bool:
        """Whether the bytes come in another layout than the model's."""
        return self.layout is not None and self.layout != self._model_layout(value)

    def _new_input(self, old: Value, graph: Graph) -> tuple[Value, list[Op]]:
        """The new input, and the transpose to the model's layout where it takes one."""
        if not self._turned(old):
            return old.typed(quant=BYTES), []
        perm = _TO[self._model_layout(old)]
        shape = old.type.shape
        turned = tuple(shape[perm.index(axis)] for axis in range(4))
        new = Value(old.name, TensorType(turned, "f32", BYTES))
        name = fresh_name(f"{old.name}.turned", (v.name for o in graph.ops for v in o.results))
        return new, [op("transpose", (new,), (Value(name, TensorType(shape, "f32")),), perm=perm)]

    def _turn_data(self, ctx: PassContext, old: Value, new: Value) -> None:
        """Bring calibration data that came in the model's layout into that of the bytes."""
        data = ctx.facts.find(CalibrationData)
        array = None if data is None else data.arrays.get(old.name)
        if data is None or array is None or new.type.shape == old.type.shape:
            return
        if array.shape[1:] == old.type.shape[1:]:
            turned = np.ascontiguousarray(array.transpose(_TO["NHWC" if self.layout == "NHWC" else "NCHW"]))
            arrays = {**data.arrays, old.name: turned}
            ctx.facts.put(replace(data, arrays=arrays, digest=data.digest and f"{data.digest}:{self.layout}"))
