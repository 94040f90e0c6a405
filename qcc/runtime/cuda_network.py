"""A network in a GPU's memory: its code, constants and arena, and its launches as one CUDA graph."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcc.errors import ArtifactError
from qcc.runtime.cuda_driver import Driver
from qcc.runtime.cuda_program import Address, CudaProgram, Image, Launch
from qcc.runtime.pointers import address
from qcc.runtime.program import Argument


def choose(images: Sequence[Image], capability: int) -> Image:
    """The code for a device of ``capability`` (80 for 8.0): machine code of its generation, else PTX.

    Machine code of an earlier minor number runs, too. Raises ArtifactError where nothing does.
    """
    own = [i for i in images if not i.portable and i.number // 10 == capability // 10 and i.number <= capability]
    text = [i for i in images if i.portable and i.number <= capability]
    for fitting in (own, text):
        if fitting:
            return max(fitting, key=lambda image: image.number)
    held = ", ".join(image.arch for image in images)
    raise ArtifactError(f"this GPU is sm_{capability}, and the artifact holds code for {held}: compile for it")


class CudaNetwork:
    """One inference at a time: inputs in, one graph launch, outputs out.

    ``files`` gives the contents of the files that ``program`` names.
    """

    def __init__(self, program: CudaProgram, read: Callable[[str], bytes], driver: Driver) -> None:
        self.program, self.driver = program, driver
        self.image = choose(program.images, driver.capability)
        memory: list[int] = []
        graphs: list[ctypes.c_void_p] = []
        modules: list[ctypes.c_void_p] = []
        finish = weakref.finalize(self, driver.release, memory, graphs, modules)
        finish.atexit = False  # the driver does it by itself, and may be gone by then
        module = driver.load(read(self.image.file), self.image.file)
        modules.append(module)

        def allocated(size: int) -> int:
            memory.append(driver.allocate(size))
            return memory[-1]

        self._functions = {
            name: self._function(module, name) for name in {launch.kernel for launch in program.launches}
        }
        constants = read(program.constants)
        self._memory = {
            ("arena", 0): allocated(program.arena),
            ("constants", 0): allocated(len(constants)),
        }
        place = ctypes.c_uint64(self._memory["constants", 0])
        driver.call("cuMemcpyHtoD_v2", place, constants, ctypes.c_size_t(len(constants)))
        for space, arguments in (("input", program.inputs), ("output", program.outputs)):
            for number, argument in enumerate(arguments):
                self._memory[space, number] = allocated(_bytes(argument))
        self._stream = driver.stream()
        self._arguments = [self._pointers(launch) for launch in program.launches]
        # Kernels that are loaded at their first launch must not be so while launches are captured.
        self._launch_all()
        driver.call("cuStreamSynchronize", self._stream)
        self._graph = driver.capture(self._stream, self._launch_all)
        graphs.append(self._graph)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs of ``batch`` samples; inputs are C-contiguous and of the program's shapes."""
        driver, results = self.driver, {}
        driver.enter()
        for number, a in enumerate(self.program.inputs):
            source = ctypes.c_void_p(address(inputs[a.name]))
            target = ctypes.c_uint64(self._memory["input", number])
            driver.call("cuMemcpyHtoDAsync_v2", target, source, ctypes.c_size_t(_bytes(a)), self._stream)
        driver.call("cuGraphLaunch", self._graph, self._stream)
        for number, a in enumerate(self.program.outputs):
            results[a.name] = np.empty(a.shape, a.dtype)
            place = ctypes.c_void_p(address(results[a.name]))
            source_of = ctypes.c_uint64(self._memory["output", number])
            driver.call("cuMemcpyDtoHAsync_v2", place, source_of, ctypes.c_size_t(_bytes(a)), self._stream)
        driver.call("cuStreamSynchronize", self._stream)
        return results

    def seconds(self, repeats: int) -> float:
        """Seconds of one inference, inputs and outputs in device memory: the mean of ``repeats`` in a row."""
        return self._timed(lambda: self.driver.call("cuGraphLaunch", self._graph, self._stream), repeats)

    def launch_seconds(self, repeats: int) -> list[float]:
        """Seconds of every launch alone, the mean of ``repeats`` in a row, in the order of the program."""
        numbers = range(len(self.program.launches))
        return [self._timed(lambda number=number: self._launch(number), repeats) for number in numbers]  # type: ignore[misc]

    def _timed(self, work: Callable[[], None], repeats: int) -> float:
        driver = self.driver
        driver.enter()
        before, after = (driver.pointer("cuEventCreate", 0) for _ in range(2))
        work()
        driver.call("cuEventRecord", before, self._stream)
        for _ in range(repeats):
            work()
        driver.call("cuEventRecord", after, self._stream)
        driver.call("cuEventSynchronize", after)
        milliseconds = ctypes.c_float()
        driver.call("cuEventElapsedTime", ctypes.byref(milliseconds), before, after)
        for event in (before, after):
            driver.call("cuEventDestroy_v2", event)
        return milliseconds.value / 1e3 / repeats

    def _launch_all(self) -> None:
        for number in range(len(self.program.launches)):
            self._launch(number)

    def _launch(self, number: int) -> None:
        launch = self.program.launches[number]
        function, pointers = self._functions[launch.kernel], self._arguments[number][0]
        self.driver.launch(function, launch.grid, launch.block, launch.shared, pointers, self._stream)

    def _function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        return self.driver.pointer("cuModuleGetFunction", module, name.encode())

    def _pointers(self, launch: Launch) -> tuple[Any, Any]:
        """The array of the addresses of the arguments, and the arguments, which must live as long."""
        values = [ctypes.c_uint64(self._at(a)) for a in launch.arguments]
        return (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)), values

    def _at(self, a: Address) -> int:
        try:
            return self._memory[a.space, a.index] + a.offset
        except KeyError as e:
            raise ArtifactError(f"a launch names {a.space} {a.index}, which the network lacks") from e


def _bytes(argument: Argument) -> int:
    return int(np.prod(argument.shape, dtype=np.int64)) * np.dtype(argument.dtype).itemsize
