"""``qcc schema``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcc.errors import ConfigError


def schema_command(
    name: Annotated[str | None, typer.Argument(help="config, manifest, capabilities, verify-report …")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write all of them to a folder.")] = False,
    folder: Annotated[Path, typer.Option("--folder", help="The folder that --write fills.")] = Path("schemas"),
) -> None:
    """Print a JSON Schema, list them, or write them all.

    qcc schema config

    qcc schema --write
    """
    from qcc.schemas import names, schema_text

    if write:
        folder.mkdir(parents=True, exist_ok=True)
        for known in names():
            (folder / f"{known}.json").write_text(schema_text(known), encoding="utf-8")
            typer.echo(str(folder / f"{known}.json"))
    elif name is None:
        typer.echo("\n".join(names()))
    elif name in names():
        typer.echo(schema_text(name), nl=False)
    else:
        raise ConfigError(f"no schema '{name}'; there are {', '.join(names())}")
