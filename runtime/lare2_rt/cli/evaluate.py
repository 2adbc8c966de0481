"""``lare2-rt evaluate``: labelled images in, metrics with intervals out."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ..tools.evaluation.options import Labelled, ReportOptions, Split
from .options import EngineChoice, Threshold, Verify, located, say_notes

if TYPE_CHECKING:
    from ..tools.evaluation.run import OpenScorer
    from ..tools.evaluation.store import Scorer


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    data: Labelled
    bundle: Annotated[
        list[str] | None,
        typer.Option(help="Bundle folder; repeat for a matrix. Default: the one that 'infer' would use."),
    ] = None
    split: Split = None
    report: ReportOptions
    threshold: Threshold = None
    engine: EngineChoice
    verify: Verify = False


def run(options: Options) -> int:
    """Measure a bundle on labelled images: ACC, AP, AUC, TPR at 1 % and 5 % FPR, ECE, per generator, with intervals.

    A run that was stopped goes on where it was. Exit code: as 'infer'.
    """
    from ..bundle.opening import open_bundle
    from ..tools.datasets.build import open_data
    from ..tools.evaluation.command import evaluate_and_report
    from ..tools.evaluation.items import select

    selection = select(open_data(options.data), options.split)
    bundles: list[str | None] = [*options.bundle] if options.bundle else [None]
    for name in bundles if len(bundles) > 1 else ():
        open_bundle(located(name).path)  # a wrong one must not come to light after hours with the first
    scorers: list[OpenScorer] = [functools.partial(_scorer, name, options) for name in bundles]
    return evaluate_and_report(scorers, selection, options.report)


def _scorer(name: str | None, options: Options) -> Scorer:
    from ..tools.evaluation.store import scorer_of

    # A file that crashes or hangs its decoder must not end a run of hours.
    detector = options.engine.detector(located(name), threshold=options.threshold, verify=options.verify, isolate=True)
    say_notes(detector)
    return scorer_of(detector)
