"""The running half: interprets ``program.json`` with numpy. It needs nothing of qcc's compiler.

Sums are taken in int64, whose values are those of int32 wherever the compiler has proved that
int32 holds them; every arithmetic step ends in ``clamp((acc * m + c) >> shift)``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from qcc.artifact.manifest import Manifest
from qcc.errors import ArtifactError

Array = NDArray[Any]

PROGRAM = "device/program.json"
"""Where qcc puts the file that the target wrote."""


@dataclass(frozen=True)
class Step:
    """One line of the program. ``zero_points`` holds one number per operand."""

    op: str
    result: str
    dtype: str
    operands: list[str]
    zero_points: list[int]
    attrs: dict[str, Any]

    def centred(self, operands: list[Array], index: int) -> Array:
        """Operand ``index`` as int64 codes less their zero point."""
        centred: Array = operands[index].astype(np.int64) - self.zero_points[index]
        return centred

    def requantized(self, scaled: Array) -> Array:
        """``scaled`` is ``acc * m + c``, int64; ``>>`` of an int64 rounds down."""
        codes = np.clip(scaled >> self.attrs["shift"], self.attrs["qmin"], self.attrs["qmax"])
        stored: Array = codes.astype(self.dtype)
        return stored


class ListingBackend:
    """Runs the program of an artifact; holds no state between runs, so threads may share it."""

    def __init__(self, manifest: Manifest, files: Mapping[str, Path], threads: int) -> None:
        path = files.get(PROGRAM)
        if path is None:
            raise ArtifactError(f"the artifact holds no {PROGRAM}")
        program = json.loads(path.read_text(encoding="utf-8"))
        self._outputs: list[str] = program["outputs"]
        self._steps = [Step(**step) for step in program["steps"]]
        self._constants: dict[str, Array] = {
            name: np.array(c["values"], c["dtype"]).reshape(c["shape"]) for name, c in program["constants"].items()
        }

    def run(self, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Codes of every output from codes of every input, both [batch, ...]."""
        env = {**self._constants, **inputs}
        for step in self._steps:
            env[step.result] = _RUN[step.op](step, [env[name] for name in step.operands])
        return {name: env[name] for name in self._outputs}


def _windows(x: Array, step: Step, kernel: tuple[int, int], fill: int) -> Array:
    """[N, C, H, W] to [N, C, rows, columns, kernel height, kernel width]; ``fill`` is what borders hold."""
    top, left, bottom, right = step.attrs["pads"]
    (sh, sw), (dh, dw) = step.attrs["strides"], step.attrs["dilations"]
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    span = (dh * (kernel[0] - 1) + 1, dw * (kernel[1] - 1) + 1)
    view: Array = sliding_window_view(padded, span, axis=(2, 3))[:, :, ::sh, ::sw, ::dh, ::dw]
    return view


def _per_channel(vector: Array) -> Array:
    """One number per output channel (or one for all) against [N, channels, rows, columns]."""
    return vector.astype(np.int64).reshape(-1, 1, 1)


def _conv2d(step: Step, xs: list[Array]) -> Array:
    x, w = step.centred(xs, 0), step.centred(xs, 1)
    groups = step.attrs["groups"]
    windows = _windows(x, step, w.shape[2:], fill=0)
    parts = [
        np.tensordot(part, kernel, axes=([1, 4, 5], [1, 2, 3]))
        for part, kernel in zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    ]
    scaled = np.concatenate(parts, axis=-1).transpose(0, 3, 1, 2) * _per_channel(xs[2]) + _per_channel(xs[3])
    if len(xs) == 6:
        scaled = scaled + xs[4].astype(np.int64) * _per_channel(xs[5])
    return step.requantized(scaled)


def _dense(step: Step, xs: list[Array]) -> Array:
    scaled = step.centred(xs, 0) @ step.centred(xs, 1).T * xs[2].astype(np.int64) + xs[3]
    if len(xs) == 6:
        scaled = scaled + xs[4].astype(np.int64) * xs[5]
    return step.requantized(scaled)


def _linear(step: Step, xs: list[Array]) -> Array:
    scaled = xs[0]
    for codes, multiplier in zip(xs[1::2], xs[2::2], strict=True):
        scaled = scaled + codes.astype(np.int64) * multiplier
    return step.requantized(scaled)


def _lookup(step: Step, xs: list[Array]) -> Array:
    codes, table = xs
    index = codes.astype(np.int64) - np.iinfo(codes.dtype).min
    rows = np.atleast_2d(table)
    channel = np.arange(len(rows)).reshape([-1 if axis == 1 else 1 for axis in range(codes.ndim)])
    found: Array = rows[channel, index]
    return found


def _reduce_sum(step: Step, xs: list[Array]) -> Array:
    total = step.centred(xs, 0).sum(axis=tuple(step.attrs["axes"]), keepdims=step.attrs["keepdims"])
    return step.requantized(total * xs[1] + xs[2])


def _sum_pool2d(step: Step, xs: list[Array]) -> Array:
    total = _windows(step.centred(xs, 0), step, step.attrs["kernel"], fill=0).sum(axis=(4, 5))
    return step.requantized(total * xs[1] + xs[2])


def _max_pool2d(step: Step, xs: list[Array]) -> Array:
    lowest = int(np.iinfo(xs[0].dtype).min)
    highest: Array = _windows(xs[0], step, step.attrs["kernel"], fill=lowest).max(axis=(4, 5))
    return highest


def _reshape(step: Step, xs: list[Array]) -> Array:
    shape = step.attrs["shape"]
    return xs[0].reshape([len(xs[0]) if size < 0 else size for size in shape])


def _transpose(step: Step, xs: list[Array]) -> Array:
    return xs[0].transpose(step.attrs["perm"])


_RUN: Mapping[str, Callable[[Step, list[Array]], Array]] = {
    "iconv2d": _conv2d,
    "idense": _dense,
    "ilinear": _linear,
    "ilookup": _lookup,
    "ireduce_sum": _reduce_sum,
    "isum_pool2d": _sum_pool2d,
    "max_pool2d": _max_pool2d,
    "reshape": _reshape,
    "transpose": _transpose,
}
