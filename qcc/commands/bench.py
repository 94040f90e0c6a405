"""``qcc bench``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from qcc.commands.console import out, print_json, print_notes, print_table, progress_bars
from qcc.commands.doctor import FEATURES, cpu_flags, cpu_model
from qcc.commands.options import ArtifactArg, DataOption, DeviceOption, IsaOption, JsonFlag, on_device
from qcc.commands.profile import show_profile
from qcc.commands.run import artifact_data
from qcc.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcc.bench import Job, Outcome, Row
    from qcc.runtime import Session

CALIBRATION: Final = 32
"""Samples that onnxruntime calibrates its int8 model on; for its speed they hardly matter."""

WEIGHTS: Final = ("warm", "cold")


def bench_command(
    artifact: ArtifactArg,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="A,B", help="Peers: onnxruntime, openvino; on a GPU onnxruntime-gpu, torch."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The ONNX model, for the peers; else looked for beside it.")
    ] = None,
    data: DataOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per call.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; every engine runs in each.")] = 30,
    threads: Annotated[str, typer.Option("--threads", "-j", metavar="N,M", help="Threads, each in turn.")] = "1",
    weights: Annotated[
        str, typer.Option("--weights", help="warm: caches as a loop of calls leaves them; cold: emptied before a call.")
    ] = "warm,cold",
    amx: Annotated[bool, typer.Option("--amx/--no-amx", help="Whether any engine may use AMX.")] = True,
    isa: IsaOption = None,
    device: DeviceOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Time the kernels of a cpu artifact instead.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Time an artifact, interleaved with the same model in onnxruntime (fp32 and int8) and OpenVINO (int8).

    qcc bench model.qcc --against onnxruntime,openvino --data calibration.npz --threads 1,2
    qcc bench gpu.qcc --device 0 --against onnxruntime-gpu,torch --batch 64 --weights warm

    The int8 model of both is onnxruntime's own static quantization (per-channel QDQ). Without --data,
    inputs are random: fine for time, meaningless for values.
    """
    from qcc.bench import Job, run, run_without_amx

    if profile:
        show_profile(artifact, isa, rounds, as_json=as_json)
        return
    peers = _listed(against, "--against") if against is not None else ("onnxruntime",) if model is not None else ()
    settings = Job(
        artifact, {}, _counts(threads), rounds, _listed(weights, "--weights"), peers, isa=isa, device=on_device(device)
    )
    job = _with_data(settings, model, data, batch)
    if amx:
        with progress_bars() as progress:
            outcome = run(job, progress)
    else:
        outcome = run_without_amx(job)
    print_notes(outcome.notes)
    features = [f for f in FEATURES if f in cpu_flags() and (amx or not f.startswith("amx"))]
    if as_json:
        processor = {"model": cpu_model(), "features": features}
        rows = [_plain(row) for row in outcome.rows]
        print_json({"processor": processor, "batch": batch, "rounds": rounds, "results": rows})
    else:
        out().print(f"{cpu_model()}: {' '.join(features) or 'no features that matter'}", markup=False)
        _print(outcome, batch)


def _listed(text: str, option: str) -> tuple[str, ...]:
    """``a,b`` as names. Raises ConfigError for unknown ones."""
    from qcc.bench import PEERS

    known = {"--against": PEERS, "--weights": WEIGHTS}[option]
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"{option} takes {', '.join(known)}; got '{unknown[0]}'")
    return names


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise ConfigError(f"--threads takes positive numbers separated by commas, got '{text}'")
    return counts


def _with_data(job: Job, model: Path | None, data: str | None, batch: int) -> Job:
    """``job`` with inputs for the artifact, and for the model where there are peers."""
    from qcc.artifact.store import read_artifact
    from qcc.runtime import Session
    from qcc.verification import model_inputs, source_model

    artifact = read_artifact(job.artifact)
    session = Session(artifact, device=job.device)
    arrays = _arrays(session, data, batch, CALIBRATION if job.against else batch)
    inputs = {name: a[: _rows(session, name, batch)] for name, a in arrays.items()}
    if not job.against:
        return replace(job, inputs=inputs)
    source = source_model(artifact, model)
    whole = model_inputs(artifact, source, arrays)
    first = {name: a[: _rows(session, name, batch)] for name, a in whole.items()}
    return replace(job, inputs=inputs, model=source, model_inputs=first, samples=_samples(session, whole))


def _rows(session: Session, name: str, batch: int) -> int:
    """Entries along axis 0 of one call's array for the input ``name``."""
    spec = next(s for s in session.inputs if s.name == name)
    return batch if spec.batched or not spec.shape else spec.shape[0] or 1


def _samples(session: Session, arrays: Mapping[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    """``arrays`` as the smallest calls that the model takes."""
    steps = {name: _rows(session, name, 1) for name in arrays}
    count = min(len(a) // steps[name] for name, a in arrays.items())
    return [{name: a[i * steps[name] : (i + 1) * steps[name]] for name, a in arrays.items()} for i in range(count)]


def _arrays(session: Session, data: str | None, batch: int, count: int) -> dict[str, NDArray[Any]]:
    """At least ``batch`` samples for every input: reals, or bytes where the artifact takes bytes."""
    import numpy as np

    if any(not s.batched and s.shape and s.shape[0] != batch for s in session.inputs):
        raise ConfigError(f"the artifact's batch is fixed; --batch {batch} does not fit {session.inputs[0]}")
    count = max(batch, count)
    if data is not None:
        dataset = artifact_data(session, {"path": data, "samples": count})
        found = {name: a if a.dtype.kind != "f" else a.astype(np.float32) for name, a in dataset.arrays.items()}
        return {name: np.resize(a, (max(len(a), batch), *a.shape[1:])) for name, a in found.items()}
    rng = np.random.default_rng(0)
    sizes = {s.name: [count if d is None else d for d in s.shape] for s in session.inputs}
    return {
        s.name: rng.integers(0, 256, sizes[s.name], np.uint8)
        if s.takes_bytes
        else rng.standard_normal(sizes[s.name]).astype(np.float32)
        for s in session.inputs
    }


def _plain(row: Row) -> dict[str, Any]:
    ours = next(iter(row.seconds.values())).median
    return {
        "threads": row.threads,
        "weights": row.weights,
        "seconds": {name: asdict(t) for name, t in row.seconds.items()},
        "times_qcc": {name: t.median / ours for name, t in row.seconds.items()},
    }


def _print(outcome: Outcome, batch: int) -> None:
    columns = ("engine", "median", "lower quartile", "upper quartile", "best", "× qcc")
    for row in outcome.rows:
        ratios = _plain(row)["times_qcc"]
        cells = [
            (name, *(f"{1000 * s:.3f}" for s in (t.median, t.low, t.high, t.best)), f"{ratios[name]:.2f}")
            for name, t in row.seconds.items()
        ]
        title = f"milliseconds a call, batch {batch}, {row.threads} thread(s), {row.weights} caches"
        typer.echo()
        print_table(title, columns, cells, numbers=1)
