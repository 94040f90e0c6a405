"""The command line: ``qcc COMMAND``, also ``python -m qcc COMMAND``. Exit codes are those of ``qcc.errors``."""

from __future__ import annotations

import io
import logging
import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from qcc import __version__
from qcc.commands.bench import bench_command
from qcc.commands.compile import compile_command
from qcc.commands.doctor import doctor_command
from qcc.commands.fuzz import fuzz_command
from qcc.commands.inspect import inspect_command
from qcc.commands.opt import opt_command
from qcc.commands.plugins import passes_command, targets_command
from qcc.commands.report import report_command
from qcc.commands.run import run_command
from qcc.commands.schema import schema_command
from qcc.commands.search import search_command
from qcc.commands.tune import tune_command
from qcc.commands.verify import verify_command
from qcc.errors import QccError

DEBUG = "--debug"
INTERRUPTED = 130

app = typer.Typer(
    name="qcc",
    help="Compile ONNX models into proven integer-only artifacts, bit-identical on every target.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("compile")(compile_command)
app.command("run")(run_command)
app.command("verify")(verify_command)
app.command("inspect")(inspect_command)
app.command("search")(search_command)
app.command("report")(report_command)
app.command("bench")(bench_command)
app.command("tune")(tune_command)
app.command("opt")(opt_command)
app.command("fuzz")(fuzz_command)
app.command("passes")(passes_command)
app.command("targets")(targets_command)
app.command("schema")(schema_command)
app.command("doctor")(doctor_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Say more; twice: why as well.")] = 0,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks; may stand anywhere.")] = False,
) -> None:
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    handler = RichHandler(level, Console(stderr=True), show_time=False, show_path=False)
    logger = logging.getLogger("qcc")
    logger.handlers = [handler]
    logger.setLevel(level)


def main() -> NoReturn:
    """Run the command that ``sys.argv`` names, and exit."""
    debug = DEBUG in sys.argv[1:]
    _print_what_can_be_printed()
    try:
        app(args=[a for a in sys.argv[1:] if a != DEBUG], prog_name="qcc")
    except QccError as e:
        if debug:
            raise
        _fail(_line(e), e.exit_code)
    except MemoryError:
        if debug:
            raise
        _fail("out of memory", QccError.exit_code)
    except OSError as e:
        if debug:
            raise
        _fail(f"{e.filename or 'system'}: {e.strerror or e}", QccError.exit_code)
    except SystemExit as e:
        if e.code == INTERRUPTED:
            _fail("interrupted", INTERRUPTED)
        raise
    except Exception as e:
        if debug:
            raise
        _fail(f"internal error: {type(e).__name__}: {e} (--debug shows where; please report it)", QccError.exit_code)
    sys.exit(0)


def _print_what_can_be_printed() -> None:
    """Let characters that the terminal's encoding lacks become question marks, instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _line(error: QccError) -> str:
    """The message and its notes in one line."""
    notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    return " ".join(f"{error}{notes}".split())


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"qcc: {message}\n")
    sys.exit(code)
