"""The options of ``doctor``. Imports nothing heavy: it is read for every ``--help``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..host.console import interruptible, output_errors


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(interruptible(doctor))


def doctor(
    bundle: Annotated[
        Optional[str], typer.Option(help="Bundle folder to look at. Default: the one that 'infer' would use.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON to paste into an issue, without your home folder and name.")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--engine-seconds", min=1, help="Give up on an engine that takes longer to open.")
    ] = 120,
) -> None:
    """Look for what does not work here: packages, machine, GPU, bundle, cache, formats, and each engine by opening it.

    Exit code: 0 nothing is broken, 1 something is, with its remedy, 130 interrupted.
    """
    from .doctor import run

    with output_errors():
        code = run(bundle, as_json=as_json, seconds=seconds)
    raise typer.Exit(code)
