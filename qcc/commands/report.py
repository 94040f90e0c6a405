"""``qcc report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcc.commands.console import out, print_json
from qcc.commands.options import ForceFlag, JsonFlag
from qcc.errors import ConfigError


def report_command(
    path: Annotated[Path, typer.Argument(metavar="OUT", help="An artifact, or the folder of a search.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page; else OUT.html beside it.")] = None,
    timed: Annotated[bool, typer.Option("--time", help="Artifacts: time each layer on this machine.")] = False,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a page about an artifact's or a search's bits: sensitivity, bytes, latency and error by layer.

    qcc report search/ -o search.html

    qcc report net.qcc --time --json
    """
    from qcc.reporting.data import collect
    from qcc.reporting.html import page

    data = collect(path, timed=timed)
    if as_json:
        print_json(data)
        return
    where = output or Path(f"{path.resolve()}.html")
    if where.exists() and not force:
        raise ConfigError(f"{where} exists: pass --force to replace it")
    try:
        where.write_text(page(data), encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{where}: cannot be written: {e.strerror or e}") from e
    out().print(f"written to {where}")
