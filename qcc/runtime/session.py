"""A loaded artifact: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qcc.artifact.border import dequantize_output, quantize_input
from qcc.artifact.manifest import Manifest, TensorSpec
from qcc.artifact.store import Artifact, read_artifact
from qcc.errors import ConfigError
from qcc.runtime.backend import ALIGNMENT, Backend, make_backend


def load(path: str | Path, threads: int = 1, *, isa: str | None = None, device: int | str | None = None) -> Session:
    """The artifact at ``path``, ready to run on ``threads`` threads.

    ``isa`` names the instruction set to use, where the artifact holds several; by default it is the
    richest that this machine has. ``device`` numbers the GPU to use, from 0, or names what stands for one.
    Every file's hash is checked before anything native is loaded.
    Raises ArtifactError, PluginError, ConfigError.
    """
    if threads < 1:
        raise ConfigError(f"threads must be at least 1, got {threads}")
    return Session(read_artifact(Path(path)), threads, isa=isa, device=device)


class Session:
    """Runs an artifact; may be shared by threads."""

    def __init__(
        self, artifact: Artifact, threads: int = 1, *, isa: str | None = None, device: int | str | None = None
    ) -> None:
        self._artifact = artifact
        options = {} if isa is None else {"isa": isa}
        self._backend = make_backend(artifact.manifest, artifact.files, threads, options, device)
        self._quantize: Callable[[TensorSpec, NDArray[Any]], NDArray[Any]]
        self._quantize = getattr(self._backend, "quantize", quantize_input)
        self._direct: Callable[[Mapping[str, ArrayLike], bool], dict[str, NDArray[Any]] | None]
        self._direct = getattr(self._backend, "direct", lambda inputs, raw: None)
        self._alignment: int = getattr(self._backend, "alignment", ALIGNMENT)
        self._batched = any(s.batched for s in (*self.inputs, *self.outputs))

    @property
    def backend(self) -> Backend:
        """What runs the artifact's files."""
        return self._backend

    @property
    def manifest(self) -> Manifest:
        return self._artifact.manifest

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    def run(self, inputs: Mapping[str, ArrayLike], *, raw: bool = False) -> dict[str, NDArray[Any]]:
        """All outputs by name, for a batch of any size.

        ``inputs`` maps every input's name to an array [batch, …], of any strides and alignment:
        reals (quantized here), or codes of the input's element type. Outputs are float32, or with
        ``raw`` the codes. A model of a fixed leading size b takes any multiple k·b, and runs k times.
        Raises ConfigError for a wrong name, shape or dtype, an empty batch, and NaN.
        """
        if (results := self._direct(inputs, raw)) is not None:
            return results
        arrays = {name: _native(np.asarray(array)) for name, array in inputs.items()}
        runs, batch = self._measure(arrays)
        codes = {s.name: self._quantize(s, arrays[s.name]) for s in self.inputs}
        parts = [self.run_codes(part, batch) for part in _split(codes, runs)]
        results = {s.name: _joined([p[s.name] for p in parts]) for s in self.outputs}
        if raw:
            return results
        return {s.name: dequantize_output(s, results[s.name]) for s in self.outputs}

    def run_codes(self, codes: Mapping[str, NDArray[Any]], batch: int) -> dict[str, NDArray[Any]]:
        """Codes of every output, for one call of the backend; nothing about ``codes`` is checked.

        They are arrays of the inputs' element types, [batch, …], of any strides and alignment.
        """
        return self._backend.run({name: _aligned(array, self._alignment) for name, array in codes.items()}, batch)

    def _measure(self, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
        """How often the backend runs, and the batch of each run."""
        specs = self.inputs
        if extra := sorted(set(arrays) - {s.name for s in specs}):
            raise ConfigError(f"no input is called '{extra[0]}'; inputs: {', '.join(s.name for s in specs)}")
        counts: dict[int, TensorSpec] = {}
        for spec in specs:
            if (array := arrays.get(spec.name)) is None:
                raise ConfigError(f"no array for the input '{spec.name}'; inputs: {', '.join(s.name for s in specs)}")
            counts.setdefault(_count(spec, array), spec)
        if len(counts) > 1:
            sizes = ", ".join(f"'{spec.name}' {count}" for count, spec in counts.items())
            raise ConfigError(f"inputs have different batch sizes: {sizes}")
        count = next(iter(counts), 1)
        return (1, count) if self._batched else (count, 1)


def _count(spec: TensorSpec, array: NDArray[Any]) -> int:
    """How many batches of ``spec`` the array holds. Raises ConfigError."""
    fits = array.ndim == len(spec.shape) and array.shape[1:] == spec.shape[1:]
    if not fits or (not spec.batched and spec.shape and (spec.shape[0] == 0 or array.shape[0] % (spec.shape[0] or 1))):
        raise ConfigError(f"input '{spec.name}' has shape {list(array.shape)}; it takes {spec}")
    if array.size == 0:
        raise ConfigError(f"input '{spec.name}' is empty")
    if not spec.shape:
        return 1
    return int(array.shape[0]) // (spec.shape[0] or 1)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """``array`` in this machine's byte order."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _split(codes: Mapping[str, NDArray[Any]], runs: int) -> list[dict[str, NDArray[Any]]]:
    return [{name: _part(a, i, runs) for name, a in codes.items()} for i in range(runs)]


def _part(array: NDArray[Any], index: int, runs: int) -> NDArray[Any]:
    if runs == 1:
        return array
    size = len(array) // runs
    return array[index * size : (index + 1) * size]


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _aligned(array: NDArray[Any], alignment: int) -> NDArray[Any]:
    """``array``, or a copy of it, C-contiguous and starting at a multiple of ``alignment`` bytes."""
    if array.flags.c_contiguous and (alignment <= array.itemsize or array.ctypes.data % alignment == 0):
        return array
    room = np.empty(array.nbytes + alignment, np.uint8)
    start = -room.ctypes.data % alignment
    copy: NDArray[Any] = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
