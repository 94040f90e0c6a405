"""``qcc verify``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcc.commands.console import out, print_notes, print_table, progress_bars
from qcc.commands.options import (
    ArtifactArg,
    DataOption,
    DeviceOption,
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
    from qcc.verify.report import VerifyReport


def verify_command(
    artifact: ArtifactArg,
    data: DataOption = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="The ONNX model; by default looked for beside the artifact.")
    ] = None,
    samples: SamplesOption = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Measure every layer, and blame those that lose most.")
    ] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="How many layers to blame.")] = 10,
    threads: ThreadsOption = 1,
    isa: IsaOption = None,
    device: DeviceOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    scale: ScaleOption = None,
    layout: LayoutOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare the artifact with the fp32 model, and with two other executions of the same integers.

    The fp32 model under onnxruntime, the numpy reference, the integer graph under onnxruntime, and
    the compiled artifact run on the same data. Any integer that differs fails the command (exit code 8).
    With `labels` in the data, top-1 accuracy is shown too.

    qcc verify model.qcc --model model.onnx --data evaluation.npz --layers
    """
    from qcc.config import make_data_config
    from qcc.verification import verify_artifact

    if data is None:
        raise ConfigError("no data: pass --data")
    source = make_data_config({"path": data, "samples": samples, **normalization(mean, std, scale, layout)})
    with progress_bars() as progress:
        result = verify_artifact(
            artifact,
            source,
            model=model,
            layers=layers,
            threads=threads,
            isa=isa,
            device=on_device(device),
            progress=progress,
        )
    print_notes(result.notes)
    if as_json:
        typer.echo(result.report.to_json(), nl=False)
    else:
        _print(result.report, top)
    result.report.check()


def _print(report: VerifyReport, top: int) -> None:
    columns = ("output", "SQNR dB", "cosine", "agreement %", "KL nats", "top-1 fp32 %", "top-1 integer %")
    rows = [
        (
            o.name,
            _number(o.sqnr_db, 2),
            _number(o.cosine, 6),
            _percent(o.agreement),
            _number(o.kl, 5),
            _percent(o.top1_fp32),
            _percent(o.top1_integer),
        )
        for o in report.outputs
    ]
    print_table(f"integer against fp32, {report.samples} samples", columns, rows, numbers=1)
    out().print()
    engines = [(e.name, e.elements, e.differing) for e in report.engines]
    print_table("against the numpy reference", ("execution", "elements", "that differ"), engines, numbers=1)
    if report.layers:
        out().print()
        blamed = [
            (r.value, r.op, _number(r.sqnr_db, 1), _number(r.local_db, 1), _number(r.loss_db, 1))
            for r in report.blamed(top)
        ]
        heads = ("layer", "operation", "SQNR dB", "alone dB", "loses dB")
        print_table(f"the layers that lose most, of {len(report.layers)}", heads, blamed, numbers=2)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}" if math.isfinite(value) else "exact" if value > 0 else str(value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
