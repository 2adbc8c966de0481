"""The commands that measure and calibrate; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from typing import Annotated, Literal, Optional

import typer

from ..host.console import interruptible, output_errors


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(interruptible(evaluate))
    app.command()(interruptible(calibrate))


def evaluate(
    data: Annotated[
        str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index', or a labelled folder or list.")
    ],
    bundle: Annotated[
        Optional[list[str]],
        typer.Option(help="Bundle folder; repeat for a matrix. Default: the one that 'infer' would use."),
    ] = None,
    split: Annotated[
        Optional[str],
        typer.Option(help="train, val, test or all. Default: test; all images where the set has no splits."),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder of the report, the figures and the scores.")] = "evaluation",
    corrupt: Annotated[
        Optional[str],
        typer.Option(help="Score corrupted images as well: all, or a list such as jpeg,blur2,half,noise."),
    ] = None,
    threshold: Annotated[
        Optional[float],
        typer.Option(help="Probability (0..1) from which the verdict is 'generated'. Default: the bundle's own."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Engine name, or 'auto' for the fastest usable one.")] = "auto",
    precision: Annotated[
        Optional[Literal["fp32", "fp16"]], typer.Option(help="Arithmetic precision. Default: the engine's.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, help="Images per engine call, one of the bundle's sizes.")
    ] = None,
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")
    ] = None,
    resamples: Annotated[
        int, typer.Option(min=0, max=100_000, help="Bootstrap resamples behind each interval; 0 for none.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")] = False,
) -> None:
    """Measure a bundle on labelled images: ACC, AP, AUC, TPR at 1 % and 5 % FPR, ECE, per generator, with intervals.

    A run that was stopped goes on where it was. Exit code: as 'infer'.
    """
    from .evaluate import EvaluateOptions, run

    options = EvaluateOptions(
        bundles=tuple(bundle or ()),
        engine=engine,
        precision=precision,
        threads=threads,
        batch=batch,
        threshold=threshold,
        split=split,
        out=out,
        corrupt=corrupt,
        resamples=resamples,
        seed=seed,
        verify=verify,
    )
    with output_errors():
        code = run(data, options)
    raise typer.Exit(code)


def calibrate(
    data: Annotated[
        str, typer.Argument(metavar="INDEX", help="Index from 'lare2-rt index', or a labelled folder or list.")
    ],
    out: Annotated[str, typer.Option(help="Folder of the new bundle.")],
    bundle: Annotated[
        Optional[str], typer.Option(help="Bundle to calibrate, left as it is. Default: the one that 'infer' would use.")
    ] = None,
    fpr: Annotated[
        float,
        typer.Option(help="Share of real images that may be called generated, and of generated ones called real."),
    ] = 0.01,
    split: Annotated[
        Optional[str],
        typer.Option(help="train, val, test or all. Default: val; all images where the set has no splits."),
    ] = None,
    scores: Annotated[
        Optional[str], typer.Option(help="Folder of scores, so that a stopped run goes on. Default: OUT.scores.")
    ] = None,
    report: Annotated[Optional[str], typer.Option(help="Write what changed to this JSON file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --out replace an existing bundle.")] = False,
    engine: Annotated[str, typer.Option(help="Engine name, or 'auto' for the fastest usable one.")] = "auto",
    precision: Annotated[
        Optional[Literal["fp32", "fp16"]], typer.Option(help="Arithmetic precision. Default: the engine's.")
    ] = None,
    batch: Annotated[
        Optional[int], typer.Option(min=1, help="Images per engine call, one of the bundle's sizes.")
    ] = None,
    threads: Annotated[
        Optional[int], typer.Option(min=1, help="CPU threads. Default: what affinity and quota allow.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and of the bootstrap.")] = 0,
    crops: Annotated[
        Optional[int],
        typer.Option(min=1, help="Windows per image (1, 4, 9, 16 ...); 'infer' then takes as many. Default: 1."),
    ] = None,
) -> None:
    """Measure temperature, bias and two thresholds on labelled images, and write them as a new bundle.

    Exit code: as 'infer'.
    """
    from .calibrate import CalibrateOptions, run

    options = CalibrateOptions(
        bundle=bundle,
        out=out,
        fpr=fpr,
        split=split,
        scores=scores,
        report=report,
        force=force,
        engine=engine,
        precision=precision,
        threads=threads,
        batch=batch,
        seed=seed,
        crops=crops,
    )
    with output_errors():
        code = run(data, options)
    raise typer.Exit(code)
