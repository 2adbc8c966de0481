"""The command line: options, exit codes and the last line of defence against tracebacks."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Literal, Optional

import typer

from .._version import __version__
from ..host.console import (
    EXIT_FILES,
    Interrupted,
    ReaderGone,
    answering_sigterm,
    fail,
    interruptible,
    output_errors,
    silence,
)
from .dataset_commands import register as register_dataset_commands
from .doctor_command import register as register_doctor_command
from .engine_commands import register as register_engine_commands
from .quality_commands import register as register_quality_commands

app = typer.Typer(
    name="lare2-rt",
    help="Tell diffusion-generated images from real photographs with LaRE².",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help comes up in half the time
    context_settings={"help_option_names": ["-h", "--help"]},
)

Format = Literal["table", "json", "jsonl", "csv", "parquet"]
PrecisionName = Literal["fp32", "fp16"]


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


@app.command()
@interruptible
def infer(
    paths: Annotated[
        Optional[list[str]],
        typer.Argument(
            metavar="PATH", help="Images, folders (recursive), quoted globs, or - for one image on standard input."
        ),
    ] = None,
    bundle: Annotated[
        Optional[str],
        typer.Option(help="Bundle folder. Default: $LARE2_BUNDLE, ./engines, else the embedded model."),
    ] = None,
    format: Annotated[  # noqa: A002 - the option's name
        Optional[Format], typer.Option(help="Output format. Default: by the ending of --out, else table.")
    ] = None,
    out: Annotated[Optional[str], typer.Option(help="Write results to this file instead of standard output.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --out replace an existing file.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the results that --out holds; a kill loses none from then on.")
    ] = False,
    threshold: Annotated[
        Optional[float],
        typer.Option(help="Probability (0..1) from which the verdict is 'generated'. Default: the bundle's own."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine name, or 'auto' for the fastest usable one.")] = "auto",
    precision: Annotated[
        Optional[PrecisionName], typer.Option(help="Arithmetic precision. Default: the engine's.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, help="Images per engine call, one of the bundle's sizes.")
    ] = None,
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")] = False,
    cuda_graph: Annotated[
        bool, typer.Option("--cuda-graph/--no-cuda-graph", help="On a GPU, replay one captured graph.")
    ] = True,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say why other engines are not used.")] = False,
    lists: Annotated[
        Optional[list[str]],
        typer.Option("--list", metavar="FILE", help="Score the paths in this file too, one a line; - is stdin."),
    ] = None,
    null: Annotated[bool, typer.Option("--null", help="Paths in lists end with NUL, as of 'find -print0'.")] = False,
    max_pixels: Annotated[
        Optional[str], typer.Option(metavar="N", help="Refuse larger images, such as 200M. Default: 89.5M.")
    ] = None,
    max_bytes: Annotated[
        Optional[str], typer.Option(metavar="N", help="Refuse larger files, such as 20M. Default: 1 GiB.")
    ] = None,
    max_seconds: Annotated[
        Optional[float], typer.Option(metavar="S", help="Give up on a file that takes longer to decode. Default: 60.")
    ] = None,
    isolate: Annotated[
        bool,
        typer.Option(
            "--isolate/--no-isolate", help="Decode in processes of their own, which a bad file can crash but not stop."
        ),
    ] = True,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first image that fails.")] = False,
    fail_on: Annotated[
        Optional[Literal["generated"]], typer.Option(help="Exit with 3 if any image gets this verdict.")
    ] = None,
    heatmap: Annotated[
        Optional[str], typer.Option(metavar="DIR", help="Draw a panel per image: LaRE, attention and the verdict.")
    ] = None,
    report: Annotated[
        Optional[str], typer.Option(metavar="FILE", help="Write one page, such as report.html, that shows the run.")
    ] = None,
    crops: Annotated[
        Optional[int],
        typer.Option(min=1, help="Windows whose logits are averaged: 1, 4, 9 ... Default: as calibrated, else 1."),
    ] = None,
) -> None:
    """Score images: the verdict, and the probability that each was generated.

    Exit code: 0 all scored, 1 some files failed or results could not be written, 2 nothing could start, 3 found what
    --fail-on looks for, 130 interrupted by Ctrl-C, 143 ended by SIGTERM.
    """
    from ..pixels.limits import limits_of
    from .infer import InferOptions, run

    options = InferOptions(
        bundle=bundle,
        format=format,
        out=out,
        force=force,
        threshold=threshold,
        engine=engine,
        precision=precision,
        batch=batch,
        threads=threads,
        verify=verify,
        cuda_graph=cuda_graph,
        verbose=verbose,
        lists=tuple(lists or ()),
        null=null,
        limits=limits_of(max_pixels, max_bytes, max_seconds, isolate=isolate),
        isolate=isolate,
        fail_fast=fail_fast,
        fail_on=fail_on,
        resume=resume,
        heatmap=heatmap,
        report=report,
        crops=crops,
    )
    with output_errors():
        code = run(paths or [], options)
    raise typer.Exit(code)


@app.command()
@interruptible
def inspect(
    bundle: Annotated[
        Optional[str],
        typer.Argument(metavar="BUNDLE", help="Bundle folder. Default: the one that 'infer' would use."),
    ] = None,
    format: Annotated[  # noqa: A002
        Literal["table", "json"], typer.Option(help="Output format.")
    ] = "table",
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")] = False,
) -> None:
    """Check a bundle and show what it is made of: method, components, weights, decision rule, parity."""
    from .inspect import run

    with output_errors():
        run(bundle, form=format, verify=verify)


register_dataset_commands(app)
register_doctor_command(app)
register_engine_commands(app)
register_quality_commands(app)


@answering_sigterm
def main() -> None:
    """Entry point of ``lare2-rt``: turns known errors into one sentence and an exit code."""
    from ..errors import Lare2Error

    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - stays open until the process ends
    if sys.stdout is None:
        # Its descriptor would go to the next file that is opened, and whatever a library prints into that file.
        fail("standard output is closed; send it to a file or to /dev/null")
    # A terminal that knows few characters gets escapes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
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
