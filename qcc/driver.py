"""From an ONNX model to an artifact: one straight function."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcc import __version__
from qcc.artifact.contents import graph_files, tensor_spec
from qcc.artifact.manifest import Manifest, PluginSpec
from qcc.artifact.sizes import layer_sizes
from qcc.artifact.store import check_output, write_artifact
from qcc.config import CompileConfig, merge
from qcc.data import as_bytes, as_calibration, load_data
from qcc.device import build_device, check_device
from qcc.errors import ConfigError
from qcc.frontend.export import export_onnx
from qcc.frontend.load import Model, load_model
from qcc.ir.bounds import certificates
from qcc.ir.graph import Graph
from qcc.passmgr.base import Pass
from qcc.passmgr.context import PassContext, Progress
from qcc.passmgr.facts import CalibrationData, DeviceCosts
from qcc.passmgr.latency import read_latencies
from qcc.passmgr.pipeline import Pipeline
from qcc.passmgr.plugins import make_pass, make_recipe, make_target
from qcc.passmgr.target import Target

BYTE_INPUT = "byte-input"
CALIBRATE = "calibrate"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compilation made. ``seconds`` are wall times by step, in order."""

    path: Path
    manifest: Manifest
    bytes: int
    """Size of all files together."""
    notes: tuple[str, ...]
    seconds: Mapping[str, float]
    peak_rss_bytes: int
    """See ``peak_rss_bytes``."""


@dataclass(slots=True)
class Clock:
    """Wall times by step."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - start


def compile_model(config: CompileConfig, *, force: bool = False, progress: Progress | None = None) -> Compiled:
    """Compile ``config.model`` into an artifact at ``config.output``; ``force`` replaces an earlier one.

    Raises a QccError that says what does not fit; nothing is written then.
    """
    check_output(config.output, force=force)
    clock = Clock()
    ready = prepare(config, progress, clock)
    target, passes, model, ctx, notes = ready.target, ready.passes, ready.model, ready.ctx, ready.notes
    legalization = tuple(target.passes())
    with _warnings_of(ctx) as warnings:
        graph = _run_passes(passes, model.graph, ctx, clock)
        graph = _run_passes(legalization, graph, ctx, clock)
        check_device(graph, target)
        with clock("build"):
            device = build_device(target, graph, ctx)
    with clock("write"):
        manifest = _manifest(config, model, target, (*passes, *legalization), graph)
        contents = {**graph_files(graph), **device, "model.int.onnx": _onnx_bytes(graph)}
        contents["report.json"] = _report(graph, ctx, notes, warnings)
        contents["config.yaml"] = config.resolved_yaml().encode()
        manifest = write_artifact(config.output, manifest, contents, force=force)
    size = sum(info.size for info in manifest.files.values())
    return Compiled(config.output, manifest, size, notes, clock.seconds, peak_rss_bytes())


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that passes start from: the imported model, and a context that holds the calibration data."""

    target: Target
    passes: tuple[Pass, ...]
    model: Model
    ctx: PassContext
    notes: tuple[str, ...]


def prepare(config: CompileConfig, progress: Progress | None = None, clock: Clock | None = None) -> Prepared:
    """Read what ``config`` names. Raises a QccError that says what does not fit."""
    clock = clock or Clock()
    target = make_target(config.target.name, config.target.options)
    passes = plan_passes(config)
    with clock("import"):
        model = load_model(config.model, batch=config.batch, shapes=config.shapes)
    threads = config.threads or os.cpu_count() or 1
    ctx = PassContext(config.seed, threads, target.capabilities, cache=config.cache)
    if progress is not None:
        ctx.progress = progress
    ctx.facts.put(DeviceCosts(target.layer_costs))
    if config.latency is not None:
        table = read_latencies(config.latency)
        table.check(model.digest, target.device(), str(config.latency))
        ctx.facts.put(table)
    with clock("data"):
        notes = (*model.notes, *_give_data(config, passes, model.graph, ctx))
    return Prepared(target, passes, model, ctx, notes)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def _warnings_of(ctx: PassContext) -> Iterator[list[str]]:
    """What passes and targets warn of in the meantime."""
    collector = _Collector()
    ctx.log.addHandler(collector)
    try:
        yield collector.messages
    finally:
        ctx.log.removeHandler(collector)


def plan_passes(config: CompileConfig) -> tuple[Pass, ...]:
    """The passes that ``config`` asks for, with their options. Raises ConfigError, PluginError."""
    options = _pass_options(config)
    if isinstance(config.pipeline, str):
        passes = make_recipe(config.pipeline, options)
    else:
        passes = tuple(make_pass(p.name, merge(p.options, options.get(p.name, {}))) for p in config.pipeline)
    for name in options:
        if name not in {p.name for p in passes}:
            raise ConfigError(f"options are given for the pass '{name}', which the pipeline does not have")
    return passes


def peak_rss_bytes() -> int:
    """The most memory that this process has held at once; its children, which compile native code, have their own."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _pass_options(config: CompileConfig) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {}
    if calibration := config.calibration.model_dump(exclude_none=True):
        options[CALIBRATE] = calibration
    if config.input.mode == "uint8":
        options[BYTE_INPUT] = config.input.model_dump(exclude={"mode"}, exclude_defaults=True)
    return {**options, **{name: merge(options.get(name, {}), given) for name, given in config.passes.items()}}


def _give_data(config: CompileConfig, passes: Sequence[Pass], graph: Graph, ctx: PassContext) -> tuple[str, ...]:
    """Load the calibration data, where there are any, into the context; returns notes."""
    takers = [p.name for p in passes if CalibrationData in p.needs]
    if config.data is None:
        if takers:
            raise ConfigError(f"the pass '{takers[0]}' needs data to calibrate on: pass --data")
        return ()
    shapes = {v.name: v.type.shape for v in graph.inputs}
    source = config.data.limited(config.calibration.samples)
    data = load_data(source, shapes, raw_bytes=config.input.mode == "uint8")
    if config.input.mode == "uint8":
        data = as_bytes(data, graph)
    ctx.facts.put(as_calibration(data, graph))
    return data.notes


def _run_passes(passes: Sequence[Pass], graph: Graph, ctx: PassContext, clock: Clock) -> Graph:
    """Run them with each one's wall time on the clock."""
    last = time.perf_counter()

    def observe(p: Pass, before: Graph, after: Graph) -> None:
        nonlocal last
        now = time.perf_counter()
        clock.seconds[p.name] = clock.seconds.get(p.name, 0.0) + now - last
        last = now

    return Pipeline(tuple(passes), observe).run(graph, ctx)


def _manifest(config: CompileConfig, model: Model, target: Target, passes: Sequence[Pass], graph: Graph) -> Manifest:
    return Manifest(
        qcc_version=__version__,
        model=config.model.stem,
        source_sha256=model.digest,
        target=PluginSpec(name=target.name, options=target.model_dump(mode="json")),
        backend=target.backend,
        pipeline=tuple(map(str, passes)),
        inputs=tuple(map(tensor_spec, graph.inputs)),
        outputs=tuple(map(tensor_spec, graph.outputs)),
    )


def _onnx_bytes(graph: Graph) -> bytes:
    data: bytes = export_onnx(graph).SerializeToString(deterministic=True)
    return data


def _report(graph: Graph, ctx: PassContext, notes: Sequence[str], warnings: Sequence[str]) -> bytes:
    data = ctx.facts.find(CalibrationData)
    report = {
        "notes": list(notes),
        "warnings": list(warnings),
        "calibration": {"samples": data.samples, "sha256": data.digest} if data else None,
        "weights": [size.describe() for size in layer_sizes(graph)],
        "facts": ctx.facts.reports(),
        "certificates": {name: c.describe() for name, c in ctx.analyses(certificates, graph).items()},
    }
    return (json.dumps(report, indent=2, sort_keys=True) + "\n").encode()
