"""Measuring what each layer costs in time at each number of weight bits, on the device and inside the network."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from qcc.artifact.manifest import TensorSpec
from qcc.config import CompileConfig
from qcc.driver import compile_model, prepare
from qcc.errors import TargetError
from qcc.passmgr.context import Progress
from qcc.passmgr.latency import EndToEnd, LatencyTable, LayerLatency, read_latencies
from qcc.runtime import Session, load

_CHOOSING: Final = ("mixed-precision", "assign-bits", "sensitivity-")
"""How the names of passes begin that have no place in a network of one width."""
_WIDTHS: Final = (2, 3, 4, 5, 6, 8)
"""Those that ``mixed-precision`` takes by default."""
_ROUNDS: Final = 15
_CALLS_SECONDS: Final = 0.02
_SPAN: Final = (0.5, 2.0)
"""Between what the factor from layers' own times to the network's may lie; beyond it is noise."""


def measured_table(config: CompileConfig, path: Path, *, progress: Progress | None = None) -> LatencyTable:
    """The table at ``path``, or a new one written there: of ``config``'s model, on its target, batch and machine.

    A network is compiled for each width that may be chosen, its layers are timed while it runs, and
    the sum is fitted to the time of whole calls. Raises ConfigError for a file of another model or
    device, TargetError where the target cannot time layers.
    """
    ready = prepare(_uniform(config, path, 8), progress)
    device = ready.target.device()
    if path.exists():
        table = read_latencies(path)
        table.check(ready.model.digest, device, str(path))
        return table
    asked = config.passes.get("mixed-precision", {}).get("weight_bits", _WIDTHS)
    widths = sorted(set(asked) & ready.target.capabilities.weight_bits)
    rows: dict[str, dict[int, float]] = {}
    whole: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="qcc-latency-") as scratch:
        sessions: dict[int, Session] = {}
        for done, bits in enumerate(widths, 1):
            artifact = Path(scratch) / f"{bits}.qcc"
            compile_model(_uniform(config, artifact, bits))
            times = ready.target.time_layers(artifact)
            if times is None:
                raise TargetError(
                    f"target '{ready.target.name}' cannot time its layers: write the table for it by hand"
                )
            for layer, seconds in times.items():
                rows.setdefault(layer, {})[bits] = seconds
            sessions[bits] = load(artifact)
            ready.ctx.progress("latency", done, len(widths))
        whole = end_to_end(sessions)
    table = fitted(rows, whole, ready.model.digest, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return table


def fitted(
    rows: Mapping[str, Mapping[int, float]], whole: Mapping[int, float], model_sha256: str, device: str
) -> LatencyTable:
    """The table whose sums come closest to the times ``whole`` of calls, by weight bits, in least squares."""
    sums = {bits: sum(row[bits] for row in rows.values() if bits in row) for bits in whole}
    x, y = (np.array([table[bits] for bits in whole]) for table in (sums, whole))
    spread = float(np.square(x - x.mean()).sum())
    factor = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 1.0
    factor = float(np.clip(factor, *_SPAN))
    overhead = max(float((y - factor * x).mean()), 0.0)
    if overhead == 0.0:
        factor = float((x * y).sum() / np.square(x).sum())
    return LatencyTable(
        model_sha256=model_sha256,
        device=device,
        batch=1,
        threads=1,
        layers=tuple(LayerLatency(layer=name, seconds=dict(row)) for name, row in rows.items()),
        factor=factor,
        overhead=overhead,
        end_to_end=tuple(
            EndToEnd(weight_bits=bits, measured=whole[bits], predicted=factor * sums[bits] + overhead) for bits in whole
        ),
    )


def end_to_end(sessions: Mapping[Any, Session], rounds: int = _ROUNDS) -> dict[Any, float]:
    """Median seconds of one call of each session with one sample, in turns."""
    codes = {key: {s.name: _codes(s) for s in session.inputs} for key, session in sessions.items()}
    times: dict[Any, list[float]] = {key: [] for key in sessions}
    for _ in range(rounds):
        for key, session in sessions.items():
            times[key].append(_seconds(session, codes[key]))
    return {key: float(np.median(row)) for key, row in times.items()}


def _seconds(session: Session, codes: Mapping[str, NDArray[Any]]) -> float:
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < _CALLS_SECONDS:
        session.run(codes, raw=True)
        calls += 1
    return (time.perf_counter() - start) / calls


def _codes(spec: TensorSpec) -> NDArray[Any]:
    shape = [1 if d is None else d for d in spec.shape]
    info = np.iinfo(spec.numpy)
    return np.random.default_rng(0).integers(info.min, info.max, shape, spec.numpy, endpoint=True)


def _uniform(config: CompileConfig, output: Path, bits: int) -> CompileConfig:
    """``config`` with all weights at ``bits``."""
    kept = {name: o for name, o in config.passes.items() if not name.startswith(_CHOOSING)}
    quantize = {**kept.get("quantize", {}), "weight_bits": bits, "end_bits": bits}
    return config.model_copy(update={"output": output, "latency": None, "passes": {**kept, "quantize": quantize}})
