"""The short way through the border and a network: one call's samples, by memory that is kept from call to call.

A small network takes less time than the bookkeeping of the general way. Results are the same.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest, TensorSpec
from qcc.errors import ConfigError
from qcc.runtime.pointers import pointer
from qcc.runtime.program import Argument
from qcc.runtime.tvm_border import NativeBorder, Quantize
from qcc.runtime.tvm_network import Network


@dataclass(frozen=True, slots=True)
class _Input:
    """An input: where its codes go, and what quantizes reals; without ``quantize`` codes are taken as they are."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codes: np.dtype[Any]
    quantize: Quantize | None


@dataclass(frozen=True, slots=True)
class _Output:
    name: str
    shape: tuple[int, ...]
    codes: np.dtype[Any]
    grid: tuple[int, float] | None
    """Zero point and scale."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """What one call at a time works in: codes of inputs and outputs with their addresses, and the arena's."""

    codes: tuple[tuple[NDArray[Any], ctypes.c_void_p], ...]
    results: tuple[tuple[NDArray[Any], ctypes.c_void_p], ...]
    arena: tuple[NDArray[np.uint8], ctypes.c_void_p]


class Direct:
    """Calls ``function(inputs …, outputs …, constants, arena)``; may be shared by threads."""

    @classmethod
    def of(cls, manifest: Manifest, border: NativeBorder | None, network: Network) -> Direct | None:
        """The short way for ``network``, or None where codes of an input would have to be checked."""
        checked = [s for s in manifest.inputs if border is None or border.call(s.name) is None]
        if any((s.qmin, s.qmax) != (np.iinfo(s.dtype).min, np.iinfo(s.dtype).max) for s in checked):
            return None
        return cls(manifest, border, network)

    def __init__(self, manifest: Manifest, border: NativeBorder | None, network: Network) -> None:
        program = network.program
        self._inputs = tuple(_input(s, a, border) for s, a in zip(manifest.inputs, program.inputs, strict=True))
        self._outputs = tuple(_output(s, a) for s, a in zip(manifest.outputs, program.outputs, strict=True))
        self._real = all(o.grid is not None for o in self._outputs)
        self._network = network
        self._function, self._constants = network.function, network.constants
        self._memories: deque[_Memory] = deque()

    def run(self, inputs: Mapping[str, Any], raw: bool) -> dict[str, NDArray[Any]] | None:
        """What ``Session.run`` returns; None unless all inputs are arrays of the very types and shapes of one call.

        Raises ConfigError for NaN.
        """
        if len(inputs) != len(self._inputs):
            return None
        for i in self._inputs:
            array = inputs.get(i.name)
            if type(array) is not np.ndarray or array.dtype != i.dtype or array.shape != i.shape:
                return None
            if not array.flags.c_contiguous:
                return None
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = self._allocated()
        pointers = [self._codes(i, inputs[i.name], m) for i, m in zip(self._inputs, memory.codes, strict=True)]
        results = _fresh(self._outputs) if raw or not self._real else memory.results
        self._function(*pointers, *(p for _, p in results), self._constants, memory.arena[1])
        if raw:
            outputs = {o.name: codes for o, (codes, _) in zip(self._outputs, results, strict=True)}
        else:
            outputs = {o.name: _real(o, codes) for o, (codes, _) in zip(self._outputs, results, strict=True)}
        self._memories.append(memory)
        return outputs

    def _codes(self, i: _Input, array: NDArray[Any], memory: tuple[NDArray[Any], ctypes.c_void_p]) -> ctypes.c_void_p:
        """The address of the codes of ``array``."""
        if i.quantize is None:
            return pointer(array)
        if i.quantize(pointer(array), memory[1], array.size):
            raise ConfigError(f"input '{i.name}' holds NaN")
        return memory[1]

    def _allocated(self) -> _Memory:
        buffers = [np.empty(i.shape if i.quantize else 1, i.codes) for i in self._inputs]
        return _Memory(tuple((b, pointer(b)) for b in buffers), _fresh(self._outputs), self._network.arena())


def _input(spec: TensorSpec, argument: Argument, border: NativeBorder | None) -> _Input:
    """Reals where the border library quantizes them, else codes; both are then checked by type alone."""
    codes = np.dtype(argument.dtype)
    quantize = border.call(spec.name) if border else None
    return _Input(spec.name, argument.shape, codes if quantize is None else np.dtype(np.float32), codes, quantize)


def _fresh(outputs: tuple[_Output, ...]) -> tuple[tuple[NDArray[Any], ctypes.c_void_p], ...]:
    """An array for the codes of every output, and its address."""
    arrays = [np.empty(o.shape, o.codes) for o in outputs]
    return tuple((a, pointer(a)) for a in arrays)


def _output(spec: TensorSpec, argument: Argument) -> _Output:
    grid = None if spec.quant is None else (spec.quant.zero_point, spec.quant.scale)
    return _Output(spec.name, argument.shape, np.dtype(argument.dtype), grid)


def _real(o: _Output, codes: NDArray[Any]) -> NDArray[Any]:
    """As ``dequantize_output``."""
    if o.grid is None:
        return codes
    zero_point, scale = o.grid
    wide = codes.astype(np.float64)
    if zero_point:
        wide -= zero_point
    wide *= scale
    return wide.astype(np.float32)
