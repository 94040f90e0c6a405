"""Quantizing inputs in machine code, with the very results of ``qcc.artifact.border``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import tvm_ffi
from numpy.typing import NDArray

from qcc.artifact.border import quantize_input
from qcc.artifact.manifest import TensorSpec
from qcc.errors import ArtifactError, ConfigError
from qcc.runtime.pointers import pointer

_EXACT_BITS: Final = 24
"""Multipliers of scales that have no more bits than this are quantized exactly by multiplication."""


class NativeBorder:
    """The functions of a border library for the inputs ``specs``; what it does not cover, numpy does."""

    def __init__(self, library: Path, specs: Iterable[TensorSpec]) -> None:
        try:
            self._library = tvm_ffi.load_module(str(library))
            self._calls = {s.name: self._prepared(s) for s in specs if _covered(s)}
        except (RuntimeError, AttributeError, KeyError) as e:
            raise ArtifactError(f"{library.name} does not load: {e}") from e

    def call(self, name: str) -> tuple[Any, tuple[float, float, float, int]] | None:
        """The function for the input ``name``, and its arguments after (reals, codes, count); None where not covered.

        It returns nonzero where the reals hold NaN.
        """
        return self._calls.get(name)

    def quantize(self, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """Codes of ``array``; see ``quantize_input``, which this agrees with on every bit. Raises ConfigError."""
        call = self._calls.get(spec.name)
        if call is None or array.dtype != np.float32 or not array.flags.c_contiguous:
            return quantize_input(spec, array)
        function, scalars = call
        codes = np.empty(array.shape, spec.numpy)
        if function(pointer(array), pointer(codes), array.size, *scalars):
            raise ConfigError(f"input '{spec.name}' holds NaN")
        return codes

    def _prepared(self, spec: TensorSpec) -> tuple[Any, tuple[float, float, float, int]]:
        if spec.quant is None:
            raise KeyError(spec.name)
        zero = spec.quant.zero_point
        scalars = (1.0 / spec.quant.scale, float(spec.qmin - zero), float(spec.qmax - zero), zero)
        return self._library[f"quantize_{spec.dtype}"], scalars


def _covered(spec: TensorSpec) -> bool:
    if spec.quant is None or np.dtype(spec.dtype).itemsize > 2:
        return False
    odd = spec.quant.mult // (spec.quant.mult & -spec.quant.mult)
    return odd.bit_length() <= _EXACT_BITS
