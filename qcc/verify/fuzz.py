"""Differential fuzzing: random INTEGER graphs, the reference against other executions.

Every difference is shrunk to a small graph and written down: the graph as text, and an .npz with its
inputs and larger constants, both of which ``fuzz_case.load_case`` reads back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcc.errors import TargetError, UnsupportedError
from qcc.frontend.export import export_onnx
from qcc.ir.graph import Graph
from qcc.passmgr.context import Progress
from qcc.verify.fuzz_case import Case, write_case
from qcc.verify.fuzz_graphs import make_case
from qcc.verify.fuzz_shrink import shrink
from qcc.verify.interp import evaluate
from qcc.verify.ort import OrtModel
from qcc.verify.report import differing

Array = NDArray[Any]

Engine = Callable[[Graph, Mapping[str, Array]], Mapping[str, Array]]
"""Executes an INTEGER graph on codes, by name. May refuse it by raising TargetError or UnsupportedError."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An engine that disagreed with the reference, or crashed; ``case`` is the shrunk graph."""

    engine: str
    case: Case
    reason: str
    path: Path | None = None

    def __str__(self) -> str:
        ops = ", ".join(o.kind for o in self.case.graph.ops if o.kind != "constant")
        where = f"; written to {self.path}" if self.path else ""
        return f"{self.engine}: case {self.case.seed}/{self.case.index} ({ops}): {self.reason}{where}"


@dataclass(frozen=True, slots=True)
class FuzzReport:
    """``ops`` counts operations over all cases, ``refused`` the cases that each engine would not run."""

    seed: int
    cases: int
    elements: int
    ops: Mapping[str, int]
    refused: Mapping[str, int]
    failures: tuple[Failure, ...]
    seconds: float

    @property
    def clean(self) -> bool:
        return not self.failures


def fuzz(
    count: int,
    seed: int,
    engines: Mapping[str, Engine],
    *,
    start: int = 0,
    out: Path | None = None,
    stop_after: int = 5,
    progress: Progress | None = None,
) -> FuzzReport:
    """Run the cases ``start`` to ``start + count`` of ``seed`` through every engine.

    Failures are shrunk, and written under ``out`` when that is given; after ``stop_after`` of them
    the run ends early.
    """
    begin = time.perf_counter()
    ops: Counter[str] = Counter()
    refused = dict.fromkeys(engines, 0)
    failures: list[Failure] = []
    elements = cases = 0
    for index in range(start, start + count):
        case = make_case(seed, index)
        reference = evaluate(case.graph, case.inputs)
        cases += 1
        elements += sum(a.size for a in reference.values())
        ops.update(o.kind for o in case.graph.ops if o.kind != "constant")
        for name, engine in engines.items():
            try:
                reason = complaint(engine, case, reference)
            except (TargetError, UnsupportedError):
                refused[name] += 1
                continue
            if reason is not None:
                failures.append(_investigate(name, engine, case, reason, out))
        if progress is not None:
            progress("fuzz", index + 1 - start, count)
        if len(failures) >= stop_after:
            break
    seconds = time.perf_counter() - begin
    return FuzzReport(seed, cases, elements, dict(sorted(ops.items())), refused, tuple(failures), seconds)


def complaint(engine: Engine, case: Case, reference: Mapping[str, Array] | None = None) -> str | None:
    """What is wrong with the engine's outputs on ``case``, or None.

    Raises TargetError or UnsupportedError when the engine refuses the graph.
    """
    wanted = evaluate(case.graph, case.inputs) if reference is None else reference
    try:
        got = engine(case.graph, case.inputs)
    except (TargetError, UnsupportedError):
        raise
    except Exception as e:  # whatever an engine under test raises is a finding
        return f"{type(e).__name__}: {e}"
    count = differing(wanted, got)
    return f"{count} of {sum(a.size for a in wanted.values())} elements differ" if count else None


def onnxruntime_engine(*, optimize: bool = True) -> Engine:
    """The engine that exports a graph and runs it in onnxruntime, on one thread."""

    def run(graph: Graph, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        return OrtModel(export_onnx(graph), threads=1, optimize=optimize).run(inputs)

    return run


def _investigate(name: str, engine: Engine, case: Case, reason: str, out: Path | None) -> Failure:
    def fails(candidate: Case) -> bool:
        try:
            return complaint(engine, candidate) is not None
        except (TargetError, UnsupportedError):
            return False

    small = shrink(case, fails)
    final = complaint(engine, small) or reason
    failure = Failure(name, small, final)
    return failure if out is None else replace(failure, path=write_case(small, out, name))
