"""``qcc opt``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcc.commands.console import err, progress_bars
from qcc.commands.graphs import read_graph_of
from qcc.commands.options import DataOption, SamplesOption


def opt_command(
    source: Annotated[
        str, typer.Argument(metavar="GRAPH", help="Graph text, an ONNX model, an artifact, or - for text on stdin.")
    ],
    pipeline: Annotated[str, typer.Option("--passes", "-p", help="Passes in order: a, b{option=value}.")] = "",
    data: DataOption = None,
    samples: SamplesOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the text goes; else stdout.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Say on stderr what each pass changed.")] = False,
) -> None:
    """Run passes on a graph and print the text of what comes out.

    qcc opt graph.qir -p canonicalize

    qcc opt model.onnx -p 'canonicalize, fold-batch-norm'
    """
    from qcc.config import DataConfig
    from qcc.data import as_calibration, load_data
    from qcc.ir.graph import Graph
    from qcc.ir.text import render
    from qcc.passmgr.base import Pass
    from qcc.passmgr.context import PassContext
    from qcc.passmgr.pipeline import Pipeline
    from qcc.passmgr.plugins import make_pass
    from qcc.passmgr.spelling import parse_pipeline

    graph = read_graph_of(source)
    passes = tuple(make_pass(s.name, s.options) for s in parse_pipeline(pipeline)) if pipeline.strip() else ()

    def report(p: Pass, before: Graph, after: Graph) -> None:
        err().print(f"{p}: {len(before.ops)} operations, now {len(after.ops)}", markup=False)

    with progress_bars() as progress:
        ctx = PassContext(seed=seed, progress=progress)
        if data is not None:
            shapes = {v.name: v.type.shape for v in graph.inputs}
            ctx.facts.put(as_calibration(load_data(DataConfig(path=data, samples=samples), shapes), graph))
        text = render(Pipeline(passes, report if trace else None).run(graph, ctx))
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
