"""``qcc run``."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcc.commands.console import out, print_json, print_notes, print_table, progress_bars
from qcc.commands.options import (
    ArtifactArg,
    DataOption,
    DeviceOption,
    ForceFlag,
    IsaOption,
    JsonFlag,
    LayoutOption,
    MeanOption,
    SamplesOption,
    ScaleOption,
    StdOption,
    ThreadsOption,
    normalization,
    on_device,
)
from qcc.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qcc.data import Dataset
    from qcc.runtime import Session

BATCH = 64


def run_command(
    artifact: ArtifactArg,
    data: DataOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="An .npz for the outputs.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Integer codes instead of float32.")] = False,
    samples: SamplesOption = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples per call.")] = BATCH,
    threads: ThreadsOption = 1,
    isa: IsaOption = None,
    device: DeviceOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    scale: ScaleOption = None,
    layout: LayoutOption = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Run an artifact on data, and write or describe its outputs.

    qcc run model.qcc --data evaluation.npz -o answers.npz
    """
    from qcc.runtime import load

    if data is None:
        raise ConfigError("no data: pass --data")
    if output is not None and output.exists() and not force:
        raise ConfigError(f"output {output} exists; choose another or pass --force")
    session = load(artifact, threads, isa=isa, device=on_device(device))
    dataset = artifact_data(session, {"path": data, "samples": samples, **normalization(mean, std, scale, layout)})
    results = run_batches(session, dataset.arrays, raw=raw, batch=batch)
    print_notes(dataset.notes)
    if output is not None:
        _write(output, results)
    _report(results, dataset, output, as_json)


def artifact_data(session: Session, fields: Mapping[str, Any]) -> Dataset:
    """Data for the inputs of an artifact; images stay bytes where it takes bytes. Raises ConfigError."""
    from qcc.config import make_data_config
    from qcc.data import load_data

    shapes = {s.name: tuple(-1 if d is None else d for d in s.shape) for s in session.inputs}
    return load_data(make_data_config(fields), shapes, raw_bytes=all(s.takes_bytes for s in session.inputs))


def run_batches(
    session: Session, arrays: Mapping[str, NDArray[Any]], *, raw: bool, batch: int = BATCH
) -> dict[str, NDArray[Any]]:
    """All outputs for all samples, ``batch`` samples at a time."""
    import numpy as np

    count = max((len(a) for a in arrays.values()), default=0)
    fixed = [s.shape[0] or 1 for s in session.inputs if s.shape and not s.batched]
    step = batch if not fixed else max(1, batch // fixed[0]) * fixed[0]
    parts = []
    with progress_bars() as progress:
        for start in range(0, max(count, 1), step):
            parts.append(session.run({k: a[start : start + step] for k, a in arrays.items()}, raw=raw))
            progress("run", min(start + step, count), count)
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _write(path: Path, results: Mapping[str, NDArray[Any]]) -> None:
    """An .npz, the same bytes for the same arrays, that appears whole or not at all. Raises ConfigError."""
    import numpy as np

    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
            fresh = Path(scratch) / "new.npz"
            with zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as archive:
                for name, array in results.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            fresh.replace(path)
    except OSError as e:
        raise ConfigError(f"cannot write {path}: {e.strerror or e}") from e


def _report(results: Mapping[str, NDArray[Any]], dataset: Dataset, output: Path | None, as_json: bool) -> None:
    top1 = _top1(results, dataset.labels)
    if as_json:
        shapes = {name: {"shape": list(a.shape), "dtype": a.dtype.name} for name, a in results.items()}
        print_json({"outputs": shapes, "output": str(output) if output else None, "top1": top1})
        return
    rows = [(name, str(list(a.shape)), a.dtype.name, f"{a.min():g}", f"{a.max():g}") for name, a in results.items()]
    print_table("", ("output", "shape", "dtype", "min", "max"), rows, numbers=3)
    if top1 is not None:
        out().print(f"top-1 {100 * top1:.2f} %")
    if output is not None:
        out().print(f"written to {output}", markup=False)


def _top1(results: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> float | None:
    """The share of labelled samples (label >= 0) that the first output of shape [N, classes] gets right."""
    scores = next((a for a in results.values() if a.ndim == 2 and a.shape[1] > 1), None)
    if labels is None or scores is None or len(labels) != len(scores) or not (labels >= 0).any():
        return None
    known = labels >= 0
    return float((scores[known].argmax(axis=1) == labels[known]).mean())
