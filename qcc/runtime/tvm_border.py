"""Quantizing inputs in machine code, with the very results of ``qcc.artifact.border``."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.border import quantize_input
from qcc.artifact.manifest import TensorSpec
from qcc.errors import ConfigError
from qcc.runtime.pointers import pointer
from qcc.runtime.tvm_call import encoded
from qcc.runtime.tvm_network import Library

Quantize = Callable[[ctypes.c_void_p, ctypes.c_void_p, int], bool]
"""Writes codes of so many reals; whether any is NaN."""

_ARGUMENTS: Final = (
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_double,
    ctypes.c_double,
    ctypes.c_double,
    ctypes.c_int32,
    ctypes.c_void_p,
)


class NativeBorder:
    """The functions of a border library for the inputs ``specs``; what it does not cover, numpy does."""

    def __init__(self, library: Path, specs: Iterable[TensorSpec]) -> None:
        self._library = Library(library)
        self._calls = {s.name: self._prepared(s) for s in specs if encoded(s)}

    def function(self, name: str) -> Callable[[ctypes.c_void_p], None]:
        """A function of a whole call's table; see ``tvm_call``. Raises ArtifactError where there is none."""
        found: Callable[[ctypes.c_void_p], None] = self._library.function(name, [ctypes.c_void_p])
        return found

    def quantize(self, spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """Codes of ``array``; see ``quantize_input``, which this agrees with on every bit. Raises ConfigError."""
        call = self._calls.get(spec.name)
        if call is None or array.dtype != np.float32 or not array.flags.c_contiguous:
            return quantize_input(spec, array)
        codes = np.empty(array.shape, spec.numpy)
        if call(pointer(array), pointer(codes), array.size):
            raise ConfigError(f"input '{spec.name}' holds NaN")
        return codes

    def _prepared(self, spec: TensorSpec) -> Quantize:
        zero, scale = (spec.quant.zero_point, spec.quant.scale) if spec.quant is not None else (0, 1.0)
        function = self._library.function(f"quantize_{spec.dtype}", _ARGUMENTS)
        inverse, low, high = 1.0 / scale, float(spec.qmin - zero), float(spec.qmax - zero)

        def quantize(reals: ctypes.c_void_p, codes: ctypes.c_void_p, count: int) -> bool:
            nan = ctypes.c_int32()
            function(reals, codes, count, inverse, low, high, zero, ctypes.byref(nan))
            return bool(nan.value)

        return quantize
