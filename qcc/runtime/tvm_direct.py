"""The short way through the border and a network: one call's samples, by memory that is kept from call to call.

A small network takes less time than the bookkeeping of the general way. Results are the same.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest, TensorSpec
from qcc.errors import ConfigError
from qcc.runtime.pointers import address
from qcc.runtime.program import Argument
from qcc.runtime.tvm_border import NativeBorder
from qcc.runtime.tvm_call import CALL, DECODE, ENCODE, Slots, encoded
from qcc.runtime.tvm_network import Network

_Port = tuple[str, "np.dtype[Any]", tuple[int, ...], int]
"""An input or output: its name, what its array is, and the slot of its address."""


@dataclass(frozen=True, slots=True)
class _Memory:
    """What one call at a time works in: the table of addresses, that of the table, and what they lead to."""

    table: ctypes.Array[ctypes.c_int64]
    start: ctypes.c_void_p
    codes: tuple[NDArray[Any], ...]
    arena: tuple[NDArray[np.uint8], ctypes.c_void_p]


class Direct:
    """Quantizes, calls the network and gives reals, in one call of native code; may be shared by threads."""

    @classmethod
    def of(cls, manifest: Manifest, border: NativeBorder | None, network: Network) -> Direct | None:
        """The short way for ``network``, or None where codes of an input would have to be checked."""
        checked = [s for s in manifest.inputs if not encoded(s)]
        if border is None or any((s.qmin, s.qmax) != (np.iinfo(s.dtype).min, np.iinfo(s.dtype).max) for s in checked):
            return None
        return cls(manifest, border, network)

    def __init__(self, manifest: Manifest, border: NativeBorder, network: Network) -> None:
        program = network.program
        slots = Slots(len(manifest.inputs), len(manifest.outputs))
        inputs = list(zip(manifest.inputs, program.inputs, strict=True))
        outputs = list(zip(manifest.outputs, program.outputs, strict=True))
        self._inputs = [_port(s, a, encoded(s), slots.input(i)) for i, (s, a) in enumerate(inputs)]
        self._reals = [_port(s, a, s.quant is not None, slots.output(i)) for i, (s, a) in enumerate(outputs)]
        self._raw = [
            _port(s, a, False, slots.output_codes(i) if s.quant else slots.output(i))
            for i, (s, a) in enumerate(outputs)
        ]
        self._codes = [_port(s, a, False, slots.input_codes(i)) for i, (s, a) in enumerate(inputs) if encoded(s)]
        self._codes += [port for (spec, _), port in zip(outputs, self._raw, strict=True) if spec.quant]
        self._arguments = [slots.input_codes(i) if encoded(s) else slots.input(i) for i, (s, _) in enumerate(inputs)]
        self._arguments += [*(port[3] for port in self._raw), slots.constants, slots.arena]
        self._encode, self._decode, self._all = (border.function(name) for name in (ENCODE, DECODE, CALL))
        self._slots, self._nan = slots, slots.nan
        self._network = network
        self._whole = network.function is network.alone
        self._memories: deque[_Memory] = deque()

    def run(self, inputs: Mapping[str, Any], raw: bool) -> dict[str, NDArray[Any]] | None:
        """What ``Session.run`` returns; None unless all inputs are arrays of the very types and shapes of one call.

        Raises ConfigError for NaN.
        """
        if len(inputs) != len(self._inputs):
            return None
        try:
            memory = self._memories.pop()
        except IndexError:
            memory = self._allocated()
        table, addressof = memory.table, ctypes.addressof
        exported: Callable[[Any], Any] = ctypes.c_char.from_buffer
        for name, dtype, shape, slot in self._inputs:
            array = inputs.get(name)
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                self._memories.append(memory)
                return None
            try:  # as ``address`` does, without a call; this also asks whether the array is C-contiguous
                table[slot] = addressof(exported(array))
            except (TypeError, ValueError):
                if not array.flags.c_contiguous:
                    self._memories.append(memory)
                    return None
                table[slot] = address(array)
        results = {}
        for name, dtype, shape, slot in self._raw if raw else self._reals:
            results[name] = array = np.empty(shape, dtype)
            table[slot] = addressof(exported(array))
        if raw or not self._whole:
            self._apart(memory, raw)
        else:
            self._all(memory.start)
        nan = table[self._nan]
        self._memories.append(memory)
        if nan:
            self._refuse(inputs)
        return results

    def _apart(self, memory: _Memory, raw: bool) -> None:
        """The parts of a call one by one; ``raw`` results are where the caller wants them at once."""
        self._encode(memory.start)
        self._network.function(*(ctypes.c_void_p(memory.table[slot]) for slot in self._arguments))
        if raw:
            self._restore(memory)
        else:
            self._decode(memory.start)

    def _refuse(self, inputs: Mapping[str, Any]) -> None:
        """Raises ConfigError for the first input that holds NaN."""
        name = next(p[0] for p in self._inputs if p[1].kind == "f" and np.isnan(inputs[p[0]]).any())
        raise ConfigError(f"input '{name}' holds NaN")

    def _allocated(self) -> _Memory:
        """Memory for one call, with all addresses in its table that stay the same."""
        slots, arena = self._slots, self._network.arena()
        table = (ctypes.c_int64 * slots.count)()
        memory = _Memory(
            table,
            ctypes.c_void_p(ctypes.addressof(table)),
            tuple(np.empty(shape, dtype) for _, dtype, shape, _ in self._codes),
            arena,
        )
        function = ctypes.cast(self._network.alone, ctypes.c_void_p)
        for slot, where in (
            (slots.network, function),
            (slots.constants, self._network.constants),
            (slots.arena, arena[1]),
        ):
            table[slot] = where.value or 0
        self._restore(memory)
        return memory

    def _restore(self, memory: _Memory) -> None:
        """Point to this memory's own codes, after a call that wrote elsewhere."""
        for (*_, slot), array in zip(self._codes, memory.codes, strict=True):
            memory.table[slot] = address(array)


def _port(spec: TensorSpec, argument: Argument, real: bool, slot: int) -> _Port:
    return spec.name, np.dtype(np.float32 if real else argument.dtype), argument.shape, slot
