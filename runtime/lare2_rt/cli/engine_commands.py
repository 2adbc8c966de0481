"""The options of ``bench`` and ``cache``. Imports nothing heavy: it is read for every ``--help``."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer

from ..host.console import interruptible, output_errors

_Engine = Annotated[Optional[str], typer.Option(help="Only what this engine compiled and measured. Default: all.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(interruptible(bench))
    cache = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Show or clear what engines compiled for this machine ($LARE2_CACHE, else the user's cache folder).",
    )
    cache.command("ls")(interruptible(list_cache))
    cache.command("clear")(interruptible(clear_cache))
    app.add_typer(cache, name="cache")


def bench(
    bundle: Annotated[
        Optional[str],
        typer.Option(help="Bundle folder. Default: the one that 'infer' would use."),
    ] = None,
    engine: Annotated[
        Optional[list[str]], typer.Option(help="Engine to measure; repeat for several. Default: all that can be used.")
    ] = None,
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, help="Images per engine call, one of the bundle's sizes. Default: 1.")
    ] = None,
    rounds: Annotated[
        Optional[int],
        typer.Option(min=1, max=100_000, help="Timed calls of each engine. Default: as many as take 40 seconds."),
    ] = None,
    image: Annotated[
        Optional[str], typer.Option(help="Picture to score. Default: a drawn one; the time does not depend on it.")
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Optional[Literal["table", "json"]],
        typer.Option(help="Output format. Default: by the ending of --out, else table."),
    ] = None,
    out: Annotated[Optional[str], typer.Option(help="Write to this file instead of standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --out replace an existing file.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")] = False,
) -> None:
    """Measure the engines on this machine in about a minute; from then on 'auto' takes the fastest.

    Each is checked against what the reference gave when the bundle was built. Engines that compile do so first.

    Exit code: 0 all fine, 1 an engine failed or is not faithful, 2 nothing could start, 130 interrupted.
    """
    from .bench import BenchCommand, run

    command = BenchCommand(
        bundle=bundle,
        engines=tuple(engine) if engine else None,
        threads=threads,
        batch=batch,
        rounds=rounds,
        image=image,
        format=format,
        out=out,
        force=force,
        verify=verify,
    )
    with output_errors():
        code = run(command)
    raise typer.Exit(code)


def list_cache(
    engine: _Engine = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show compiled engines: size, last use, and whether somebody is using them."""
    from .cache import show

    with output_errors():
        show(engine, as_json=as_json)


def clear_cache(engine: _Engine = None) -> None:
    """Remove compiled engines and what was measured with them; what is in use stays."""
    from .cache import clear

    with output_errors():
        clear(engine)
