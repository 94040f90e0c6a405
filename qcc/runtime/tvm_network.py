"""A compiled network, a plain C library with its constants, and calls of it. Needs numpy only."""

from __future__ import annotations

import ctypes
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ArtifactError
from qcc.runtime.backend import ALIGNMENT
from qcc.runtime.pointers import address, pointer
from qcc.runtime.program import Argument, Level, Program
from qcc.runtime.team import Team

PROFILE: Final = "qcc_profile"
"""The library's function that measures its steps; see ``Network.profile``."""

PEAK: Final = "qcc_peak"
"""The library's function that multiplies as fast as the processor can; see ``Network.peak``."""

PEAK_SCRATCH: Final = 16 << 10
"""Bytes that ``PEAK`` works in."""

SHARE: Final = "qcc_share"
"""The library's function that several threads call for one inference; see ``Team``."""


class Library:
    """A shared library of C functions; unloaded when this object and all of its functions are gone."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as e:
            raise ArtifactError(f"{path.name} does not load: {e}") from e
        self._name = path.name
        unload = weakref.finalize(self, ctypes.CDLL(None).dlclose, ctypes.c_void_p(self._library._handle))
        unload.atexit = False  # threads may still be inside when the interpreter ends

    def function(self, name: str, arguments: Sequence[Any]) -> Any:
        """The C function ``name`` of ``arguments``, which returns nothing. Raises ArtifactError where there is none."""
        try:
            found: Any = self._library[name]
        except AttributeError as e:
            raise ArtifactError(f"{self._name} has no function {name}") from e
        found.argtypes, found.restype = list(arguments), None
        found.library = self
        return found


class Network:
    """A loaded library with its constants; may be called from several threads.

    ``function`` takes the addresses of inputs, outputs, ``constants`` and an ``arena``; where the
    library allows it, ``threads`` threads share its work. ``alone`` is the same on one thread.
    """

    def __init__(
        self, program: Program, level: Level, library: Path, constants: NDArray[np.uint8], threads: int = 1
    ) -> None:
        self.program = program
        self.level = level
        self._constants = constants if address(constants) % ALIGNMENT == 0 else aligned(constants)
        self.constants = pointer(self._constants)
        self._library = Library(library)
        self._pointers = [ctypes.c_void_p] * (len(program.inputs) + len(program.outputs) + 2)
        self.alone = self._library.function(program.entry, self._pointers)
        self.function: Callable[..., None] = self.alone
        team = min(threads, program.threads)
        self.shared = team > 1 and level.control > 0
        """Whether several threads share a call."""
        if self.shared:
            share = self._library.function(SHARE, [*self._pointers, ctypes.c_void_p])
            self.function = Team(share, level.control, team)
        self._arenas: deque[tuple[NDArray[np.uint8], ctypes.c_void_p]] = deque()

    def arena(self) -> tuple[NDArray[np.uint8], ctypes.c_void_p]:
        """Memory for one call at a time, and its address."""
        memory = aligned(np.empty(self.level.arena, np.uint8))
        return memory, pointer(memory)

    def call(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        start: int,
        batch: int,
        *,
        alone: bool = False,
    ) -> None:
        """Compute the samples from ``start`` on, as many as one call takes; a short rest is computed with padding.

        Arrays are C-contiguous, of the program's element types and shapes, with ``batch`` samples.
        ``alone``: on this thread only.
        """
        count = min(self.program.batch, batch - start)
        if count < self.program.batch and any(a.batched for a in (*self.program.inputs, *self.program.outputs)):
            self._padded(inputs, outputs, start, count, alone)
            return
        ins = [_at(inputs[a.name], a, start) for a in self.program.inputs]
        outs = [_at(outputs[a.name], a, start) for a in self.program.outputs]
        self._call(self.alone if alone else self.function, ins, outs)

    def profile(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        steps: int,
        repeats: int,
    ) -> NDArray[np.int64]:
        """Ticks of the processor's time-stamp counter that each of the ``steps`` took for ``repeats`` runs in a row.

        Arrays are as for ``call``, with exactly as many samples as one call takes. Raises ArtifactError
        where the library has no function for it.
        """
        function = self._library.function(PROFILE, [*self._pointers, ctypes.c_void_p, ctypes.c_int64])
        stamps = np.zeros(steps + 1, np.int64)
        ins = [_at(inputs[a.name], a, 0) for a in self.program.inputs]
        outs = [_at(outputs[a.name], a, 0) for a in self.program.outputs]
        memory, arena = self.arena()
        function(*ins, *outs, self.constants, arena, pointer(stamps), repeats)
        del memory  # only now
        return np.diff(stamps)

    def peak(self) -> tuple[int, int]:
        """Ticks of the time-stamp counter, and the operations that were done in them at the processor's best.

        Both are 0 where the library has no function for it.
        """
        try:
            function = self._library.function(PEAK, [ctypes.c_void_p] * 2)
        except ArtifactError:
            return 0, 0
        scratch, stamps = aligned(np.zeros(PEAK_SCRATCH, np.uint8)), np.zeros(3, np.int64)
        function(pointer(scratch), pointer(stamps))
        return int(stamps[1] - stamps[0]), int(stamps[2])

    def _padded(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        start: int,
        count: int,
        alone: bool,
    ) -> None:
        full = {a.name: inputs[a.name] for a in self.program.inputs}
        for a in self.program.inputs:
            if a.batched:
                full[a.name] = np.zeros(a.shape, a.dtype)
                full[a.name][:count] = inputs[a.name][start:]
        results = {a.name: np.empty(a.shape, a.dtype) for a in self.program.outputs}
        self.call(full, results, 0, self.program.batch, alone=alone)
        for a in self.program.outputs:
            outputs[a.name][start if a.batched else 0 :] = results[a.name][: count if a.batched else None]

    def _call(
        self, function: Callable[..., None], ins: Sequence[ctypes.c_void_p], outs: Sequence[ctypes.c_void_p]
    ) -> None:
        try:
            arena = self._arenas.pop()
        except IndexError:
            arena = self.arena()
        function(*ins, *outs, self.constants, arena[1])
        self._arenas.append(arena)


def _at(array: NDArray[Any], argument: Argument, sample: int) -> ctypes.c_void_p:
    return pointer(array, sample * array.strides[0] if argument.batched else 0)


def aligned(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of a flat array that starts at a multiple of ``ALIGNMENT`` bytes."""
    room = np.empty(array.size + ALIGNMENT, np.uint8)
    start = -address(room) % ALIGNMENT
    copy = room[start : start + array.size]
    copy[...] = array
    return copy
