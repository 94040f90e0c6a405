"""Long measurements that survive interruption: partial sums on disk, named by all that determines them."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from qcc.ir.graph import Graph
from qcc.ir.text import render
from qcc.passmgr.context import PassContext
from qcc.passmgr.facts import CalibrationData
from qcc_passes.array_files import write_arrays
from qcc_passes.calibrate_cache import data_digest

Array = NDArray[Any]
Step = TypeVar("Step")

_FORMAT: Final = 3
"""Part of every name: raise it when what is measured, or how it is stored, changes."""
_DONE: Final = "steps done"
_SECONDS_BETWEEN_SAVES: Final = 5.0


class Checkpoint:
    """Sums of arrays over steps, kept in a file of the context's cache while they grow."""

    def __init__(self, path: Path | None, ctx: PassContext) -> None:
        self._path = path
        self._ctx = ctx

    @classmethod
    def of(cls, what: str, graph: Graph, ctx: PassContext, *options: object) -> Checkpoint:
        """The measurement ``what`` on ``graph`` and the calibration data; ``options`` must be JSON."""
        if ctx.cache is None:
            return cls(None, ctx)
        data = ctx.facts.get(CalibrationData)
        labels = None if data.labels is None else np.asarray(data.labels).tolist()
        key = json.dumps([_FORMAT, what, render(graph), data_digest(data), labels, ctx.seed, *options])
        return cls(ctx.cache / f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:40]}.npz", ctx)

    def accumulate(
        self, what: str, steps: Sequence[Step], measure: Callable[[int, Step], Mapping[str, Array]]
    ) -> dict[str, Array]:
        """The sum over ``steps`` of the arrays that ``measure`` gives, by name.

        Starts where an interrupted call stopped. ``measure`` must depend on nothing but its arguments.
        """
        sums = self._restore()
        done = int(sums.pop(_DONE, np.zeros(())))
        if done:
            self._ctx.log.info("%s: %d of %d steps taken from the cache", what, done, len(steps))
        saved, kept = time.monotonic(), done
        try:
            for index in range(done, len(steps)):
                for name, array in measure(index, steps[index]).items():
                    sums[name] = sums[name] + array if name in sums else array
                done = index + 1
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    self._save(sums, done)
                    saved, kept = time.monotonic(), done
                self._ctx.progress(what, done, len(steps))
        finally:
            if done > kept:
                self._save(sums, done)
        return sums

    def _save(self, sums: Mapping[str, Array], done: int) -> None:
        """Write all at once: a reader finds the whole file or none."""
        if self._path is None:
            return
        try:
            write_arrays(self._path, {**sums, _DONE: np.array(done)})
        except OSError as e:
            self._ctx.log.warning("%s could not be kept: %s", self._path.name, e)

    def _restore(self) -> dict[str, Array]:
        if self._path is None:
            return {}
        try:
            with np.load(self._path, allow_pickle=False) as file:
                return {name: file[name] for name in file}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}
