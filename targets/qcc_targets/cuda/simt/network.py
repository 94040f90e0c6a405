"""A network of CUDA kernels in the host's memory: its launches one after another."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ArtifactError, MismatchError
from qcc.runtime.cuda_program import Address, CudaProgram, Launch
from qcc.runtime.pointers import address

ALIGNMENT = 256
"""Bytes to which the driver would align what it allocates."""

Array = NDArray[Any]


class SimtNetwork:
    """One inference at a time, by the kernels in ``library``, which no other network uses.

    Every launch draws its order of blocks, warps and lanes anew, beginning with ``seed``. Memory that no kernel
    has written holds noise. ``racecheck`` says whether the library was compiled for it.
    """

    def __init__(
        self, program: CudaProgram, read: Callable[[str], bytes], library: Path, *, racecheck: bool, seed: int = 0
    ) -> None:
        self.program = program
        self._library = ctypes.CDLL(str(library))
        self._start = self._library.qcc_simt_launch
        self._start.restype = ctypes.c_char_p
        self._seed = seed
        constants = np.frombuffer(read(program.constants), np.uint8)
        self._memory = {("arena", 0): _buffer(program.arena), ("constants", 0): _buffer(constants.size)}
        self._memory["constants", 0][: constants.size] = constants
        for space, arguments in (("input", program.inputs), ("output", program.outputs)):
            for number, argument in enumerate(arguments):
                self._memory[space, number] = _buffer(_bytes(argument.shape, argument.dtype))
        if racecheck:
            self._tell_regions()
        self._launches = [self._prepared(launch) for launch in program.launches]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs of ``batch`` samples; inputs are of the program's shapes.

        Raises MismatchError where threads race, wait for ever, or leave their memory.
        """
        noise = np.random.default_rng(self._seed)
        for (space, _), buffer in self._memory.items():
            if space in ("arena", "output"):
                buffer[...] = np.frombuffer(noise.bytes(buffer.size), np.uint8)
        for number, a in enumerate(self.program.inputs):
            self._memory["input", number][...] = np.ascontiguousarray(inputs[a.name]).reshape(-1).view(np.uint8)
        for launch, prepared in zip(self.program.launches, self._launches, strict=True):
            self._seed += 1
            if (wrong := self._start(*prepared, ctypes.c_uint64(self._seed))) is not None:
                raise MismatchError(f"{launch.kernel}, which computes {launch.result}: {wrong.decode()}")
        return {
            a.name: self._memory["output", number].view(a.dtype).reshape(a.shape).copy()
            for number, a in enumerate(self.program.outputs)
        }

    def _prepared(self, launch: Launch) -> tuple[Any, ...]:
        """The arguments of ``qcc_simt_launch`` but for the seed."""
        try:
            kernel = self._library[launch.kernel]
        except AttributeError as e:
            raise ArtifactError(f"the source holds no kernel '{launch.kernel}'") from e
        pointers = (ctypes.c_void_p * len(launch.arguments))(*map(self._at, launch.arguments))
        extents = (ctypes.c_uint * 6)(*launch.grid, *launch.block)
        return kernel, pointers, ctypes.c_uint(len(pointers)), extents, ctypes.c_uint(launch.shared)

    def _at(self, a: Address) -> int:
        try:
            return address(self._memory[a.space, a.index]) + a.offset
        except KeyError as e:
            raise ArtifactError(f"a launch names {a.space} {a.index}, which the network lacks") from e

    def _tell_regions(self) -> None:
        for (space, _), buffer in self._memory.items():
            writable = ctypes.c_int(space in ("arena", "output"))
            if not self._library.qcc_simt_region(
                ctypes.c_void_p(address(buffer)), ctypes.c_size_t(buffer.size), writable
            ):
                raise MemoryError(f"no memory to check {buffer.size} bytes for races")


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _buffer(size: int) -> Array:
    """``size`` bytes, and never none, aligned as a GPU's memory is."""
    size = max(size, 1)
    room = np.zeros(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size]
