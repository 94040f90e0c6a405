"""Measuring which kernel of a site is fastest on this machine, and the file that remembers it.

The file maps, for each instruction set, what a site looks like to the name of its fastest candidate.
Both are words, so that a table stays readable, and one that is out of date merely is not used.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
from pydantic import Field

from qcc.documents import read_document
from qcc.errors import TargetError
from qcc.passmgr.context import Progress
from qcc.passmgr.target import Tuned
from qcc.validation import Strict
from qcc_targets.cpu.child import Child, Limits
from qcc_targets.cpu.isa import Isa
from qcc_targets.cpu.kernel import Site
from qcc_targets.cpu.simd.conv import Candidate, candidates
from qcc_targets.cpu.simd.trial import Call, Trial, aligned
from qcc_targets.cpu.views import extent

CONTRACTIONS: Final = ("iconv2d", "idense")
"""Operations that have candidates."""

TRIED: Final = 5
"""Candidates that are measured: those of the best estimates."""

_ROUNDS: Final = 15
_BLOCK_SECONDS: Final = 0.001
_GAIN: Final = 0.97
"""What another candidate's time must be below, relative to the first one's, to be preferred: noise is less."""


class Tuning(Strict):
    """The file: by instruction set, by a site's spelling, the name of its fastest candidate."""

    schema_version: Literal[1] = 1
    levels: dict[str, dict[str, str]] = Field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Tuning:
        """The table in ``path``. Raises ConfigError."""
        return read_document(cls, path, longest=300)

    def write(self, path: Path) -> None:
        """Replace ``path`` at once, so that an interruption loses nothing."""
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(self.model_dump_json(indent=1) + "\n")
        fresh.replace(path)

    def of(self, isa: Isa) -> Isa:
        """``isa`` with the choices for it."""
        return replace(isa, tuning=self.levels.get(isa.name, {}))


def tune(sites: Sequence[Site], isa: Isa, path: Path, limits: Limits, progress: Progress) -> list[Tuned]:
    """Measure the sites that ``path`` does not hold yet, and keep every choice there as it is made.

    Raises TargetError when a candidate crashes, or differs from the others in its result.
    """
    table = Tuning.read(path) if path.exists() else Tuning()
    known = table.levels.setdefault(isa.name, {})
    contractions = [site for site in sites if site.op.kind in CONTRACTIONS]
    open_sites = {site.spelling: site for site in contractions if site.spelling not in known}
    found = []
    for number, (spelling, site) in enumerate(open_sites.items()):
        progress("tune", number, len(open_sites))
        tried = candidates(site, isa)[:TRIED]
        if len(tried) < 2:
            continue
        seconds = _measured(site, isa, tried, limits)
        best = min(tried, key=lambda c: seconds[c.name])
        chosen = best if seconds[best.name] < _GAIN * seconds[tried[0].name] else tried[0]
        known[spelling] = chosen.name
        table.write(path)
        before, after = seconds[tried[0].name], seconds[chosen.name]
        found.append(Tuned(site.op.result.name, chosen.name, before, after))
    progress("tune", len(open_sites), len(open_sites))
    return found


def _measured(site: Site, isa: Isa, tried: Sequence[Candidate], limits: Limits) -> Mapping[str, float]:
    """Seconds of each candidate, measured in a child, which a crash or a loop ends alone."""
    with tempfile.TemporaryDirectory(prefix="qcc-") as scratch:
        answer = Path(scratch) / "seconds.json"
        child = Child(partial(_measure, site, isa, tried, answer), limits, Path(scratch) / "log")
        try:
            if (failure := child.failure()) is not None:
                raise TargetError(f"tuning %{site.op.result.name}: {failure}")
        finally:
            child.stop()
        return {name: float(value) for name, value in json.loads(answer.read_text()).items()}


def _measure(site: Site, isa: Isa, tried: Sequence[Candidate], answer: Path) -> None:
    """Write the seconds of a call of each candidate, the best of interleaved rounds."""
    trial = Trial(isa, [candidate.build() for candidate in tried])
    rng = np.random.default_rng(0)
    inputs = [aligned(extent(v) * v.itemsize) for v in site.inputs]
    for memory in inputs:
        memory[...] = rng.integers(0, 256, memory.size, np.uint8)
    outputs = [aligned(extent(site.output) * site.output.itemsize) for _ in tried]
    calls = [trial.bind(number, inputs, output) for number, output in enumerate(outputs)]
    for call, output, candidate in zip(calls, outputs, tried, strict=True):
        call()
        if not np.array_equal(output, outputs[0]):
            raise TargetError(f"'{candidate.name}' gives other results than '{tried[0].name}'")
    times = [max(1, int(_BLOCK_SECONDS / max(_seconds(call, 1), 1e-7))) for call in calls]
    rounds = list(_rounds(calls, times))
    best = {c.name: min(r[i] for r in rounds) for i, c in enumerate(tried)}
    answer.write_text(json.dumps(best))


def _rounds(calls: Sequence[Call], times: Sequence[int]) -> Iterator[list[float]]:
    for _ in range(_ROUNDS):
        yield [_seconds(call, count) for call, count in zip(calls, times, strict=True)]


def _seconds(call: Call, times: int) -> float:
    start = time.perf_counter()
    call(times)
    return (time.perf_counter() - start) / times
