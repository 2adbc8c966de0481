"""``lare2-rt evaluate``: labelled images in, metrics with intervals out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from .options import EngineChoice, Labelled, Threshold, Verify, located, say_notes

if TYPE_CHECKING:
    from ..tools.evaluation.store import Scorer


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    data: Labelled
    bundle: Annotated[
        list[str] | None,
        typer.Option(help="Bundle folder; repeat for a matrix. Default: the one that 'infer' would use."),
    ] = None
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all. Default: test; all images where the set has no splits.")
    ] = None
    out: Annotated[str, typer.Option(help="Folder of the report, the figures and the scores.")] = "evaluation"
    corrupt: Annotated[
        str | None, typer.Option(help="Score corrupted images as well: all, or a list such as jpeg,blur2,half,noise.")
    ] = None
    threshold: Threshold = None
    engine: EngineChoice
    resamples: Annotated[
        int, typer.Option(min=0, max=100_000, help="Bootstrap resamples behind each interval; 0 for none.")
    ] = 1000
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0
    verify: Verify = False


def run(options: Options) -> int:
    """Measure a bundle on labelled images: ACC, AP, AUC, TPR at 1 % and 5 % FPR, ECE, per generator, with intervals.

    A run that was stopped goes on where it was. Exit code: as 'infer'.
    """
    from ..bundle.opening import open_bundle
    from ..tools.datasets.build import open_data
    from ..tools.evaluation.command import evaluate_and_report
    from ..tools.evaluation.items import select
    from ..tools.evaluation.run import ReportOptions

    selection = select(open_data(options.data), options.split)
    bundles: list[str | None] = [*options.bundle] if options.bundle else [None]
    for name in bundles if len(bundles) > 1 else ():
        open_bundle(located(name).path)  # a wrong one must not come to light after hours with the first
    report = ReportOptions(options.out, options.corrupt, options.resamples, options.seed)
    return evaluate_and_report([functools.partial(_scorer, name, options) for name in bundles], selection, report)


def _scorer(name: str | None, options: Options) -> Scorer:
    from ..tools.evaluation.store import scorer_of

    # A file that crashes or hangs its decoder must not end a run of hours.
    detector = options.engine.detector(located(name), threshold=options.threshold, verify=options.verify, isolate=True)
    say_notes(detector)
    return scorer_of(detector)
