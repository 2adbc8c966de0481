"""The commands, and the last line of defence against tracebacks."""

from __future__ import annotations

import io
import os
import sys
import warnings
from typing import Annotated

import typer

from .._version import __version__
from ..errors import Lare2Error
from ..host.command_line import add_command
from ..host.console import EXIT_FILES, Interrupted, ReaderGone, answering_sigterm, fail, output_errors, silence
from . import audit, bench, cache, calibrate, doctor, evaluate, extract, index, infer, inspect

app = typer.Typer(
    name="lare2-rt",
    help="Tell diffusion-generated images from real photographs with LaRE².",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes up in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)
cache_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show or clear what engines compiled for this machine ($LARE2_CACHE, else the user's cache folder).",
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"lare2-rt {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


add_command(app, "infer", infer.Options, infer.run)
add_command(app, "inspect", inspect.Options, inspect.run)
add_command(app, "index", index.Options, index.run)
add_command(app, "audit", audit.Options, audit.run)
add_command(app, "extract", extract.Options, extract.run)
add_command(app, "doctor", doctor.Options, doctor.run)
add_command(app, "bench", bench.Options, bench.run)
add_command(app, "evaluate", evaluate.Options, evaluate.run)
add_command(app, "calibrate", calibrate.Options, calibrate.run)
add_command(cache_app, "ls", cache.ListOptions, cache.list_entries)
add_command(cache_app, "clear", cache.ClearOptions, cache.clear)
app.add_typer(cache_app, name="cache")


@answering_sigterm
def main() -> None:
    """Entry point of ``lare2-rt``: turns known errors into one sentence and an exit code."""
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until the process ends
    if sys.stdout is None:
        # Its descriptor would go to the next file that is opened, and whatever a library prints into that file.
        fail("standard output is closed; send it to a file or to /dev/null")
    # A terminal that knows few characters gets escapes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    try:
        with output_errors():
            code = _run()
            sys.stdout.flush()
    except Lare2Error as error:
        fail(str(error))
    except Interrupted as ending:
        fail(str(ending), code=ending.code)
    except ReaderGone:
        silence(sys.stdout)
        code = EXIT_FILES
    sys.exit(code)


def _run() -> int:
    try:
        app(standalone_mode=True)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    return 0
