"""What commands print with: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

ProgressCall = Callable[[str, int, int], None]


def out() -> Console:
    """The console of results; built per use, so that a redirected stdout is respected."""
    return Console(highlight=False, soft_wrap=True)


def err() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """``value`` as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2))


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], numbers: int | None = None
) -> None:
    """A table on stdout; the columns from index ``numbers`` on hold numbers, and are aligned right."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(escape(name), justify="right" if numbers is not None and index >= numbers else "left")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    out().print(table)


def print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        err().print(f"note: {escape(note)}")


@contextmanager
def progress_bars() -> Iterator[ProgressCall]:
    """A callback ``(what, done, total)`` that draws one bar per ``what`` on stderr, when that is a terminal."""
    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bars:

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(escape(what), total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield update


def size(count: int) -> str:
    """A number of bytes, for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"
