"""Sweeping budgets: the best bits within each, saved one by one, so that an interrupted sweep goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final

import yaml

from qcc.config import CompileConfig
from qcc.driver import Prepared, prepare
from qcc.errors import BudgetError, ConfigError
from qcc.ir.graph import Graph
from qcc.passmgr.base import Pass
from qcc.passmgr.candidates import Candidates
from qcc.passmgr.context import Progress
from qcc.passmgr.facts import CalibrationData
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass
from qcc.points import REPORT, Point, SearchReport, read_search, with_front

CHOOSER: Final = "mixed-precision"
"""The pass that chooses bits, and gives ``Candidates``."""
ASSIGN: Final = "assign-bits"
"""The pass that takes a choice."""
MEASURING: Final = "sensitivity-"
"""How the names of the passes begin that only measure for it."""


def search(
    config: CompileConfig,
    sweep: Mapping[str, Sequence[float]],
    folder: Path,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> SearchReport:
    """The best bits within every combination of the budgets in ``sweep``, and their Pareto front.

    Each point is written to ``folder`` as soon as it is found; points that are there already are
    kept, so a sweep goes on where it was interrupted. What the passes measure is cached there too,
    unless ``config`` names another cache. ``force`` discards an earlier search of something else.
    Raises a QccError that says what does not fit.
    """
    if not sweep or not all(sweep.values()):
        raise ConfigError("a search needs budgets, such as --budgets bits=3,4,6")
    chooser = {**config.passes.get(CHOOSER, {}), "budgets": dict.fromkeys(sweep, 0.0)}
    passes = {**config.passes, CHOOSER: chooser}
    config = config.model_copy(update={"passes": passes, "cache": config.cache or folder / "cache"})
    ready = prepare(config, progress)
    report = _resumed(folder, _key(config, ready), config, ready, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    graph = Pipeline(_before_choice(ready.passes)).run(ready.model.graph, ready.ctx)
    report = report.model_copy(update={"facts": ready.ctx.facts.reports()})
    combinations = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    known = [p.budgets for p in report.points]
    todo = [budgets for budgets in combinations if budgets not in known]
    for done, budgets in enumerate(todo, 1):
        point = _point(config, budgets, graph, ready, folder, len(report.points))
        report = report.model_copy(update={"points": with_front((*report.points, point))})
        report.write(folder)
        ready.ctx.progress("search", done, len(todo))
    report.write(folder)
    return report


def _before_choice(passes: Sequence[Pass]) -> tuple[Pass, ...]:
    """The passes before the one that chooses. Raises ConfigError when there is none."""
    names = [p.name for p in passes]
    if CHOOSER not in names:
        raise ConfigError(f"a search needs a pipeline with the pass '{CHOOSER}'; this one has {', '.join(names)}")
    return tuple(passes[: names.index(CHOOSER)])


def _resumed(folder: Path, key: str, config: CompileConfig, ready: Prepared, *, force: bool) -> SearchReport:
    """The report in ``folder``, or an empty one. Raises ConfigError when that one is of another search."""
    fresh = SearchReport(
        key=key, model=config.model.stem, source_sha256=ready.model.digest, target=ready.target.device()
    )
    if not (folder / REPORT).exists():
        return fresh
    if force:
        return fresh
    known = read_search(folder)
    if known.key != key:
        raise ConfigError(f"{folder}: holds a search with another model, data or options: pass --force, or another -o")
    return known


def _key(config: CompileConfig, ready: Prepared) -> str:
    """A hash of all that determines a point, but its budgets."""
    passes = {n: o for n, o in config.passes.items() if n != CHOOSER}
    chooser = {n: v for n, v in config.passes[CHOOSER].items() if n != "budgets"}
    data = ready.ctx.facts.find(CalibrationData)
    fields = config.model_copy(update={"passes": passes}).resolved_yaml()
    parts = [fields, chooser, ready.model.digest, data.digest if data else "", ready.target.device()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _point(
    config: CompileConfig,
    budgets: Mapping[str, float],
    graph: Graph,
    ready: Prepared,
    folder: Path,
    number: int,
) -> Point:
    # The recipe may have given it options that the configuration does not name.
    asked = next(p for p in ready.passes if p.name == CHOOSER).model_dump(exclude_unset=True)
    chooser = make_pass(CHOOSER, {**asked, "budgets": dict(budgets)})
    try:
        Pipeline((chooser,)).run(graph, ready.ctx)
    except BudgetError as e:
        return Point(budgets=dict(budgets), error=str(e))
    found = ready.ctx.facts.get(Candidates)
    best = found.tried[0]
    name = f"point-{number:03}.yaml"
    plan = {"weight_bits": dict(best.weight_bits), "activation_bits": dict(found.activation_plan)}
    (folder / name).write_text(_config_text(config, plan, folder / f"point-{number:03}.qcc"), encoding="utf-8")
    return Point(
        budgets=dict(budgets),
        config=name,
        objective=best.objective,
        weight_bits=dict(best.weight_bits),
        activation_bits=dict(found.activation_plan),
        costs=dict(best.costs),
        predicted=best.value,
        gap=best.gap if math.isfinite(best.gap) else None,
        kl=best.kl,
        kl_error=best.kl_error,
        softened=best.softened,
        agreement=best.agreement,
        details=found.report(),
    )


def _config_text(config: CompileConfig, plan: Mapping[str, Any], output: Path) -> str:
    """A configuration that compiles with ``plan``; its paths are absolute."""
    kept = {n: o for n, o in config.passes.items() if n != CHOOSER and not n.startswith(MEASURING)}
    fields = config.model_copy(update={"passes": {**kept, ASSIGN: plan}}).model_dump(mode="json", exclude_none=True)
    fields |= {"model": str(config.model.resolve()), "output": str(output.resolve())}
    fields.pop("threads", None)
    fields.pop("latency", None)
    if config.cache is not None:
        fields["cache"] = str(config.cache.resolve())
    if config.data is not None:
        fields["data"]["path"] = config.data.absolute()
    return str(yaml.safe_dump(fields, sort_keys=False))
