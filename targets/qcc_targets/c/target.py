"""The target ``c``, and the backend that runs what it builds."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from qcc.artifact.manifest import Manifest
from qcc.errors import ArtifactError
from qcc.ir.graph import Graph
from qcc.passmgr.context import PassContext
from qcc.passmgr.target import NARROW_BITS, Capabilities, Target
from qcc_targets.c.emit import SCALAR
from qcc_targets.c.footprint import measure
from qcc_targets.c.source import identifier, write_sources
from qcc_targets.c.toolchain import compile_c
from qcc_targets.cpu.generic.packed import PACKED
from qcc_targets.cpu.lowering import MOVES, lower
from qcc_targets.cpu.memory import Padding
from qcc_targets.cpu.network import assemble
from qcc_targets.cpu.select import GENERIC

HEADER: Final = "network.h"
SOURCE: Final = "network.c"
LIBRARY: Final = "network.so"
MEMORY: Final = "memory.json"

_BLOCKS: Final = replace(SCALAR, features=frozenset({PACKED}))
"""Short blocks that any compiler may vectorize."""

_SINGLE: Final = replace(_BLOCKS, name="single", vector_bits=32)
"""One element at a time: the shortest code."""

_TIGHT: Final = Padding(align=8, slack=0)
"""Scalar code reads nothing but tensors."""


class CTarget(Target):
    """Standalone C99: integers only, no malloc, no library but stdint.h and string.h, a static arena.

    The artifact holds ``network.c`` and ``network.h``, and a shared library made from them by
    ``cc``, so that the artifact can be run and verified here. ``optimize: size`` gives
    microcontrollers plain loops instead of short blocks. ``prefix`` begins the public C names.
    ``cross`` is a cross compiler with its flags, such as ``arm-none-eabi-gcc -mcpu=cortex-m4 -mthumb``,
    whose code is measured for ``memory.json``.
    """

    name: ClassVar[str] = "c"
    backend: ClassVar[str] = "c"

    cc: str = Field(default="cc", pattern=r"^[\w.+/-]+$")
    optimize: Literal["speed", "size"] = "speed"
    prefix: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*$")
    cross: str | None = Field(default=None, pattern=r"^[\w.+/-]+( +-[\w.+=,/-]+)*$")

    @property
    def capabilities(self) -> Capabilities:
        ops = frozenset(GENERIC) | frozenset(MOVES)
        return Capabilities(ops=ops, weight_bits=NARROW_BITS, activation_bits=NARROW_BITS | {16})

    def build(self, graph: Graph, ctx: PassContext, out: Path) -> Sequence[Path]:
        prefix = self.prefix or identifier(graph.name)
        network = assemble(lower(graph, 1), _BLOCKS if self.optimize == "speed" else _SINGLE, padding=_TIGHT)
        # C has no arrays of size 0.
        network = replace(network, arena=max(network.arena, 1), constants=network.constants or b"\0")
        files = write_sources(graph, network, prefix)
        (out / HEADER).write_text(files.header)
        (out / SOURCE).write_text(files.source)
        level = "-O2" if self.optimize == "speed" else "-Os"
        footprint = measure(self.cross, level, out / SOURCE, prefix) if self.cross else None
        memory = {"prefix": prefix, "constants": len(network.constants), "arena": network.arena}
        memory |= asdict(footprint) if footprint else {}
        (out / MEMORY).write_text(json.dumps(memory, indent=1) + "\n")
        link = ("-shared", "-fPIC", "-Wl,--build-id=none", "-s")
        compile_c(self.cc, out / SOURCE, out / LIBRARY, (level, *link))
        return [out / name for name in (HEADER, SOURCE, LIBRARY, MEMORY)]


class CBackend:
    """Calls the compiled network sample by sample, each thread in an arena of its own."""

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int) -> None:
        paths = {name: files.get(f"device/{name}") for name in (LIBRARY, MEMORY)}
        if missing := [name for name, path in paths.items() if path is None]:
            raise ArtifactError(f"the artifact holds no device/{missing[0]}")
        memory = json.loads(Path(str(paths[MEMORY])).read_text())
        try:
            library = ctypes.CDLL(str(paths[LIBRARY]))
            self._run = library[f"{memory['prefix']}_run_in"]
        except (OSError, AttributeError) as e:
            raise ArtifactError(f"{LIBRARY} does not load: {e}") from e
        self._run.restype = None
        self._inputs, self._outputs = manifest.inputs, manifest.outputs
        self._arena_bytes = int(memory["arena"])
        self._own = threading.local()

    def run(self, inputs: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output from codes of every input."""
        outputs = {s.name: np.empty(_filled(s.shape, batch), s.numpy) for s in self._outputs}
        if not hasattr(self._own, "arena"):
            self._own.arena = np.empty(self._arena_bytes, np.uint8)
        arena = ctypes.c_void_p(self._own.arena.ctypes.data)
        for sample in range(batch):
            arrays = [
                *((inputs[s.name], s.shape) for s in self._inputs),
                *((outputs[s.name], s.shape) for s in self._outputs),
            ]
            self._run(*(_pointer(array, shape, sample) for array, shape in arrays), arena)
        return outputs


def _filled(shape: Sequence[Any], batch: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else batch for d in shape)


def _pointer(array: NDArray[Any], shape: Sequence[Any], sample: int) -> ctypes.c_void_p:
    batched = bool(shape) and not isinstance(shape[0], int)
    return ctypes.c_void_p(array.ctypes.data + (sample * array.strides[0] if batched else 0))
