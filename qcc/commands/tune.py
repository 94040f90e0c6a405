"""``qcc tune``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcc.commands.console import out, print_json, print_table, progress_bars
from qcc.commands.options import ArtifactArg, JsonFlag

if TYPE_CHECKING:
    from qcc.passmgr.target import Tuned


def tune_command(
    artifact: ArtifactArg,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table of choices; one that exists is continued.")
    ] = Path("tuning.json"),
    as_json: JsonFlag = False,
) -> None:
    """Measure on this machine which kernels suit the layers of an artifact best, for a later compilation.

    qcc tune model.qcc -o tuning.json

    qcc compile model.onnx -d calibration.npz -O tuning=tuning.json

    Interrupted, it goes on where it was. The table may serve several models; results never change, only times.
    """
    from qcc.artifact.contents import read_graph
    from qcc.artifact.store import read_artifact
    from qcc.passmgr.context import PassContext
    from qcc.passmgr.plugins import make_target

    found = read_artifact(artifact)
    target = make_target(found.manifest.target.name, found.manifest.target.options)
    with progress_bars() as progress:
        ctx = PassContext(0, 1, target.capabilities)
        ctx.progress = progress
        tuned = target.tune(read_graph(found.files), output, ctx)
    if as_json:
        print_json({"table": str(output), "tuned": [asdict(t) for t in tuned]})
    else:
        _print(tuned, output)


def _print(tuned: Sequence[Tuned], output: Path) -> None:
    rows = [(t.result, t.choice, f"{1e6 * t.before:.1f}", f"{1e6 * t.after:.1f}") for t in tuned]
    print_table("", ("layer", "fastest", "µs by estimate", "µs tuned"), rows, numbers=2)
    before, after = (sum(getattr(t, name) for t in tuned) for name in ("before", "after"))
    gain = f", {before / after:.3f} times as fast together" if after else ""
    out().print(f"{len(tuned)} layers measured{gain}; choices are in {output}", markup=False)
