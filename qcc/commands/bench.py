"""``qcc bench``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcc.commands.console import err, print_json, print_table, progress_bars
from qcc.commands.options import ArtifactArg, DataOption, JsonFlag, ThreadsOption
from qcc.commands.run import artifact_data
from qcc.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcc.bench import Timing
    from qcc.runtime import Session

QCC = "qcc integer"


def bench_command(
    artifact: ArtifactArg,
    model: Annotated[Path | None, typer.Option("--model", "-m", help="The ONNX model, to time onnxruntime on.")] = None,
    data: DataOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per call.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds; every engine runs in each.")] = 30,
    threads: ThreadsOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Time an artifact, interleaved with onnxruntime in fp32 and in its own int8 (per-channel QDQ).

    qcc bench model.qcc --model model.onnx --data calibration.npz

    Without --data, inputs are random: fine for time, meaningless for values.
    """
    from qcc.artifact.store import read_artifact
    from qcc.bench import measure
    from qcc.runtime import Session

    found = read_artifact(artifact)
    session = Session(found, threads)
    arrays = _arrays(session, data, batch)
    with ExitStack() as stack, progress_bars() as progress:
        engines: dict[str, Callable[[], object]] = {QCC: lambda: session.run(arrays)}
        if model is not None:
            from qcc.verification import model_inputs

            engines |= _onnxruntime(stack, model, model_inputs(found, model, arrays), threads)
        timings = measure(engines, rounds, progress)
    if as_json:
        print_json({"batch": batch, "threads": threads, "rounds": rounds, "seconds": _plain(timings)})
    else:
        _print(timings, batch, threads)


def _arrays(session: Session, data: str | None, batch: int) -> dict[str, NDArray[Any]]:
    """One batch for every input: reals, or bytes where the artifact takes bytes."""
    import numpy as np

    if any(not s.batched and s.shape and s.shape[0] != batch for s in session.inputs):
        raise ConfigError(f"the artifact's batch is fixed; --batch {batch} does not fit {session.inputs[0]}")
    if data is not None:
        dataset = artifact_data(session, {"path": data, "samples": batch})
        return {name: a if a.dtype.kind != "f" else a.astype(np.float32) for name, a in dataset.arrays.items()}
    rng = np.random.default_rng(0)
    sizes = {s.name: [batch if d is None else d for d in s.shape] for s in session.inputs}
    return {
        s.name: rng.integers(0, 256, sizes[s.name], np.uint8)
        if s.takes_bytes
        else rng.standard_normal(sizes[s.name]).astype(np.float32)
        for s in session.inputs
    }


def _onnxruntime(
    stack: ExitStack, model: Path, arrays: Mapping[str, NDArray[Any]], threads: int
) -> dict[str, Callable[[], object]]:
    from qcc.bench import quantized_by_onnxruntime
    from qcc.verification import own_names
    from qcc.verify.ort import OrtModel

    fp32 = OrtModel(model, threads=threads)
    inputs = own_names(fp32, arrays)
    fp32.run(inputs)
    engines: dict[str, Callable[[], object]] = {"onnxruntime fp32": lambda: fp32.run(inputs)}
    try:
        int8 = stack.enter_context(quantized_by_onnxruntime(model, [inputs], threads))
    except ModelError as e:
        err().print(f"note: {e}", markup=False)
    else:
        engines["onnxruntime int8"] = lambda: int8.run(inputs)
    return engines


def _plain(timings: Mapping[str, Timing]) -> dict[str, dict[str, float]]:
    return {name: asdict(t) for name, t in timings.items()}


def _print(timings: Mapping[str, Timing], batch: int, threads: int) -> None:
    ours = timings[QCC].median
    rows = [
        (name, *(f"{1000 * s:.3f}" for s in (t.median, t.low, t.high, t.best)), f"{t.median / ours:.2f}")
        for name, t in timings.items()
    ]
    title = f"milliseconds a call, batch {batch}, {threads} thread(s)"
    columns = ("engine", "median", "lower quartile", "upper quartile", "best", "× qcc")
    print_table(title, columns, rows, numbers=1)
