"""``lare2-rt calibrate``: thresholds and an honest probability, written as a new bundle."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..host.console import EXIT_FILES, say
from ..tools.evaluation.options import Labelled
from .options import EngineChoice, located

if TYPE_CHECKING:
    from rich.table import Table

    from ..bundle.opening import Bundle
    from ..detector import Detector
    from ..tools.evaluation.calibrate import CalibrationReport, Rate
    from ..tools.evaluation.items import Selection
    from ..tools.evaluation.run import Progress
    from ..tools.evaluation.store import Scored


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command; None means default."""

    data: Labelled
    out: Annotated[str, typer.Option(help="Folder of the new bundle.")]
    bundle: Annotated[
        str | None, typer.Option(help="Bundle to calibrate, left as it is. Default: the one that 'infer' would use.")
    ] = None
    fpr: Annotated[
        float,
        typer.Option(help="Share of real images that may be called generated, and of generated ones called real."),
    ] = 0.01
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all. Default: val; all images where the set has no splits.")
    ] = None
    scores: Annotated[
        str | None, typer.Option(help="Folder of scores, so that a stopped run goes on. Default: OUT.scores.")
    ] = None
    report: Annotated[str | None, typer.Option(help="Write what changed to this JSON file.")] = None
    force: Annotated[bool, typer.Option("--force", help="Let --out replace an existing bundle.")] = False
    engine: EngineChoice
    seed: Annotated[int, typer.Option(min=0, help="Seed of the folds and of the bootstrap.")] = 0
    crops: Annotated[
        int | None,
        typer.Option(min=1, help="Windows per image (1, 4, 9, 16 ...); 'infer' then takes as many. Default: 1."),
    ] = None


def run(options: Options) -> int:
    """Measure temperature, bias and two thresholds on labelled images, and write them as a new bundle.

    Exit code: as 'infer'.
    """
    import numpy as np

    from ..bundle.rewrite import check_place, decision_of, write_with_decision
    from ..host.atomic import check_target, write_bytes
    from ..tools.datasets.build import open_data
    from ..tools.evaluation.calibrate import calibrate, check_enough
    from ..tools.evaluation.items import select
    from .tables import show

    out, found = Path(options.out), located(options.bundle)
    check_place(found.path, out, force=options.force)
    if options.report is not None:
        check_target(Path(options.report), overwrite=True)
    selection = select(open_data(options.data), options.split, default="val")
    check_enough(selection.generated, selection.groups, options.fpr)  # before hours of scoring
    if selection.split == "train":
        say("note: scores on training images are overconfident; calibrate on held-out images where you can")
    # A file that crashes or hangs its decoder must not end a run of hours.
    with options.engine.detector(found, crops=options.crops, isolate=True) as detector:
        manifest = detector.bundle.manifest
        _refuse_unfit(detector.bundle)
        scored = _score(detector, selection, Path(options.scores or f"{options.out}.scores"))
        if isinstance(scored, int):
            return scored
        for failure in scored.failures:
            say(f"{failure.name}: {failure.error}")
        known = ~np.isnan(scored.logits[:, 0])
        report = calibrate(
            scored.logits[known],
            selection.generated[known],
            selection.groups[known],
            current=manifest.rule,
            rate=options.fpr,
            seed=options.seed,
        )
        # A demonstration stays one, whatever its thresholds.
        rule = replace(report.rule, crops=detector.info.provenance.crops, demonstration=manifest.rule.demonstration)
        report = replace(report, rule=rule)
        decision = decision_of(rule, _data_line(report, selection))
        bundle = write_with_decision(detector.bundle, out, decision, force=options.force)
    if options.report is not None:
        write_bytes(Path(options.report), (json.dumps(_as_dict(report, bundle, selection), indent=2) + "\n").encode())
    show(_table(report))
    say(
        f"{out} is bundle {bundle.label}, with the thresholds 'real below' {rule.real_below:.4f} and "
        f"'generated from' {rule.generated_from:.4f}; {detector.bundle.path} is as it was"
    )
    return EXIT_FILES if scored.failures else 0


def _refuse_unfit(bundle: Bundle) -> None:
    manifest = bundle.manifest
    if manifest.decision.calibration == "untrained":
        raise UsageError(
            f"{bundle.label} has untrained weights, whose scores mean nothing",
            remedy="calibrate a bundle with a trained head, built by 'python export/build_engines.py --head FILE'",
        )
    if manifest.model.synthetic:
        say("note: only the head of this bundle was trained, the networks below it have random weights; expect little")


def _score(detector: Detector, selection: Selection, folder: Path) -> Scored | int:
    """Return the scores, or the exit code of a run that was stopped."""
    from ..tools.evaluation.command import until_stopped
    from ..tools.evaluation.store import ScoreStore, score, scorer_of

    def scored(progress: Progress) -> Scored:
        say(f"{len(selection.items)} images of split {selection.split}, scores in {folder}")
        scorer = scorer_of(detector)
        with progress(len(selection.items)) as step:
            return score(scorer, selection.items, store=ScoreStore(folder, scorer, None), step=step)

    return until_stopped(scored, folder, option="--scores")


def _data_line(report: CalibrationReport, selection: Selection) -> str:
    """One printable line for the manifest."""
    return (
        f"{report.real} real and {report.generated} generated images of {len(selection.generators)} generators, split "
        f"{selection.split}, index sha256 {selection.digest[:16] or 'none'}; for at most {report.rate:.4g} of each "
        "class on the wrong side"
    )


def _as_dict(report: CalibrationReport, bundle: Bundle, selection: Selection) -> dict[str, object]:
    return {
        **report.as_dict(),
        "bundle": {"name": bundle.manifest.model.name, "id": bundle.manifest.id},
        "data": {"index_sha256": selection.digest, "split": selection.split, "generators": selection.generators},
    }


def _table(report: CalibrationReport) -> Table:
    from .tables import listing

    columns = ("before", "before, threshold 0.5", "after, on images not fitted on")
    qualities = (report.before, report.before_at_half, report.after)
    rows = (
        ("ECE (15 bins)", *(quality.ece.text("  {:.4f}..{:.4f}") for quality in qualities)),
        ("real called generated", *(_rate(quality.false_positives) for quality in qualities)),
        ("generated called real", *(_rate(quality.misses) for quality in qualities)),
        ("unsure", *(_rate(quality.unsure) for quality in qualities)),
    )
    return listing(("", *columns), rows, right=columns)


def _rate(rate: Rate) -> str:
    return f"{rate.value:.2%}  {rate.low:.2%}..{rate.high:.2%}  ({rate.count} of {rate.total})"
