"""``qcc fuzz``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcc.commands.console import out, print_json, print_table, progress_bars
from qcc.commands.options import DeviceOption, JsonFlag, assignments, on_device
from qcc.errors import MismatchError

if TYPE_CHECKING:
    from qcc.verify.fuzz import Engine, FuzzReport

ONNXRUNTIME = "onnxruntime"


def fuzz_command(
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Random graphs.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed draws the same graphs.")] = 0,
    start: Annotated[int, typer.Option("--start", min=0, help="Index of the first graph.")] = 0,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Compile graphs for this target too.")] = None,
    option: Annotated[list[str] | None, typer.Option("--option", "-O", help="Target option, name=value.")] = None,
    device: DeviceOption = None,
    target_count: Annotated[
        int | None, typer.Option("--target-count", min=0, help="Compile only so many of them; else all.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--out", "-o", help="Write the shrunk failures here.")] = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="Run one written failure again instead.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Run random integer graphs through the reference, onnxruntime and a target; every element must agree.

    Failures are shrunk to small graphs; any of them fails the command (exit code 8).

    qcc fuzz --count 10000 --target cpu --target-count 1000 --out failures/

    qcc fuzz --replay failures/cpu-0-17.qir --target cpu

    qcc fuzz --target cuda -O arch=compute_75 --device simt-racecheck
    """
    from qcc.verify.fuzz import fuzz, onnxruntime_engine

    engines: dict[str, Engine] = {ONNXRUNTIME: onnxruntime_engine()}
    if target is not None:
        engines[target] = _target_engine(target, assignments(option or [], "--option"), device)
    if replay is not None:
        _replay(replay, engines)
        return
    compiled = count if target is None or target_count is None else min(target_count, count)
    reports = []
    with progress_bars() as progress:
        if compiled:
            reports.append(fuzz(compiled, seed, engines, start=start, out=folder, progress=progress))
        if count > compiled:
            rest = {ONNXRUNTIME: engines[ONNXRUNTIME]}
            reports.append(fuzz(count - compiled, seed, rest, start=start + compiled, out=folder, progress=progress))
    summary = _summary(reports)
    if as_json:
        print_json(summary)
    else:
        _print(summary)
    if failures := [str(f) for r in reports for f in r.failures]:
        raise MismatchError("; ".join(failures))


def _target_engine(name: str, options: dict[str, Any], device: str | None) -> Engine:
    from qcc.passmgr.plugins import make_target
    from qcc.runtime.backend import backend_on
    from qcc.trial import target_engine

    target, where = make_target(name, options), on_device(device)
    if isinstance(where, str):
        backend_on(target.backend, where)
    return target_engine(target, where)


def _replay(path: Path, engines: dict[str, Engine]) -> None:
    from qcc.verify.fuzz import complaint
    from qcc.verify.fuzz_case import load_case

    case = load_case(path)
    reasons = {name: complaint(engine, case) for name, engine in engines.items()}
    print_table("", ("execution", "against the reference"), [(n, r or "agrees") for n, r in reasons.items()])
    if bad := [f"{name}: {reason}" for name, reason in reasons.items() if reason]:
        raise MismatchError("; ".join(bad))


def _summary(reports: list[FuzzReport]) -> dict[str, Any]:
    """The parts of a run as one; an engine's graphs are those of the parts in which it took part."""
    engines = dict.fromkeys(name for r in reports for name in r.refused)
    ops = sorted({kind for r in reports for kind in r.ops})
    return {
        "seed": reports[0].seed,
        "graphs": sum(r.cases for r in reports),
        "elements": sum(r.elements for r in reports),
        "engines": {
            name: {
                "graphs": sum(r.cases - r.refused[name] for r in reports if name in r.refused),
                "refused": sum(r.refused.get(name, 0) for r in reports),
                "failures": sum(f.engine == name for r in reports for f in r.failures),
            }
            for name in engines
        },
        "operations": {kind: sum(r.ops.get(kind, 0) for r in reports) for kind in ops},
        "failures": [
            {"engine": f.engine, "reason": f.reason, "path": str(f.path)} for r in reports for f in r.failures
        ],
        "seconds": sum(r.seconds for r in reports),
    }


def _print(summary: dict[str, Any]) -> None:
    head = f"seed {summary['seed']}: {summary['graphs']} graphs, {summary['elements']} elements"
    rows = [(name, e["graphs"], e["refused"], e["failures"]) for name, e in summary["engines"].items()]
    columns = ("execution", "graphs", "refused", "that differ")
    print_table(f"{head}, {summary['seconds']:.1f} s", columns, rows, numbers=1)
    kinds = ", ".join(f"{kind} {n}" for kind, n in summary["operations"].items())
    out().print(f"\noperations: {kinds}", markup=False)
