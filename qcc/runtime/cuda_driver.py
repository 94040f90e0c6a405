"""NVIDIA's driver, through ctypes: ``libcuda.so.1`` is all that running a CUDA artifact needs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, Final

from qcc.errors import ArtifactError, ConfigError, QccError

LIBRARY: Final = "libcuda.so.1"

_OUT_OF_MEMORY: Final = 2
_MAJOR, _MINOR = 75, 76
"""Device attributes: the two parts of the compute capability."""
_CLOCK, _PROCESSORS = 13, 16
"""Device attributes: the highest clock in kHz, and how many multiprocessors."""
_NON_BLOCKING: Final = 1
_THREAD_LOCAL: Final = 1
"""Capture mode: only calls of this thread may not be captured."""


class Driver:
    """The driver's functions by name, on one device, in the device's primary context.

    Raises ArtifactError where there is no driver or no GPU, ConfigError for a wrong device number.
    """

    def __init__(self, device: int = 0) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as e:
            raise ArtifactError(f"no NVIDIA driver: {LIBRARY} does not load; artifacts for cuda need one to run") from e
        try:
            self.call("cuInit", 0)
            count = self._int("cuDeviceGetCount")
        except _DriverError as e:
            raise ArtifactError(f"no NVIDIA GPU: the driver says '{e}'") from e
        if not count:
            raise ArtifactError("no NVIDIA GPU: the driver finds no device")
        if not 0 <= device < count:
            raise ConfigError(f"no CUDA device {device}: this machine has {count}, numbered from 0")
        self._device = ctypes.c_int(self._int("cuDeviceGet", device))
        parts = (self._int("cuDeviceGetAttribute", part, self._device) for part in (_MAJOR, _MINOR))
        major, minor = parts
        self.capability = 10 * major + minor
        self._context = self.pointer("cuDevicePrimaryCtxRetain", self._device)
        self.enter()

    def enter(self) -> None:
        """Make the calling thread's further calls go to this device."""
        self.call("cuCtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        """What the manufacturer calls the device."""
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, 256, self._device)
        return text.value.decode(errors="replace")

    @property
    def cycles(self) -> float:
        """Cycles per second of all multiprocessors together, at the highest clock."""
        clock, processors = (self._int("cuDeviceGetAttribute", a, self._device) for a in (_CLOCK, _PROCESSORS))
        return 1e3 * clock * processors

    @property
    def version(self) -> int:
        """The latest CUDA version that the driver knows: 13000 for 13.0."""
        return self._int("cuDriverGetVersion")

    def call(self, name: str, *arguments: Any) -> None:
        """Call the function ``name``. Raises QccError with the driver's message."""
        try:
            function = self._library[name]
        except AttributeError as e:
            raise ArtifactError(f"the NVIDIA driver is too old: it has no {name}") from e
        if status := function(*arguments):
            raise _DriverError(name, status, self._message(status))

    def pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """The handle that the function ``name`` stores behind its first argument."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle), *arguments)
        return handle

    def allocate(self, size: int) -> int:
        """The address of ``size`` bytes of device memory. Raises QccError where there are not as many."""
        address = ctypes.c_uint64()
        try:
            self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        except _DriverError as e:
            if e.status != _OUT_OF_MEMORY:
                raise
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
            mib = (n / 2**20 for n in (size, free.value, total.value))
            text = "out of device memory: {:.0f} MiB wanted, {:.0f} of {:.0f} MiB are free".format(*mib)
            raise QccError(f"{text}; compile for a smaller batch") from e
        return address.value

    def release(
        self, memory: Sequence[int], graphs: Sequence[ctypes.c_void_p], modules: Sequence[ctypes.c_void_p]
    ) -> None:
        """Give back what was allocated, captured and loaded; what the driver says to that is not asked."""
        self._library.cuCtxSetCurrent(self._context)
        for graph in graphs:
            self._library.cuGraphExecDestroy(graph)
        for module in modules:
            self._library.cuModuleUnload(module)
        for address in memory:
            self._library.cuMemFree_v2(ctypes.c_uint64(address))

    def load(self, image: bytes, what: str) -> ctypes.c_void_p:
        """The module that ``image`` holds, machine code or PTX. Raises ArtifactError where the driver refuses it."""
        try:
            return self.pointer("cuModuleLoadData", ctypes.create_string_buffer(image, len(image) + 1))
        except _DriverError as e:
            raise ArtifactError(f"the driver refuses {what}: {e}") from e

    def launch(
        self, function: ctypes.c_void_p, grid: Sequence[int], block: Sequence[int], shared: int, pointers: Any, on: Any
    ) -> None:
        """Launch a kernel on the stream ``on``; ``pointers`` is an array of the addresses of its arguments."""
        extents = (ctypes.c_uint(n) for n in (*grid, *block, shared))
        self.call("cuLaunchKernel", function, *extents, on, pointers, None)

    def capture(self, stream: Any, work: Any) -> ctypes.c_void_p:
        """What ``work()`` launches on ``stream``, as a graph ready to be launched at once."""
        self.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            work()
        finally:
            graph = self.pointer_of_second("cuStreamEndCapture", stream)
        executable = self.pointer("cuGraphInstantiateWithFlags", graph, ctypes.c_ulonglong(0))
        self.call("cuGraphDestroy", graph)
        return executable

    def pointer_of_second(self, name: str, first: Any) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self.call(name, first, ctypes.byref(handle))
        return handle

    def stream(self) -> ctypes.c_void_p:
        return self.pointer("cuStreamCreate", _NON_BLOCKING)

    def _int(self, name: str, *arguments: Any) -> int:
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def _message(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(text))
        return text.value.decode(errors="replace") if text.value else f"error {status}"


class _DriverError(QccError):
    """What a function of the driver answered."""

    def __init__(self, function: str, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{function}: {message}")
