"""``lare2-rt calibrate``: thresholds and an honest probability, written as a new bundle."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich import box
from rich.table import Table

from ..bundle.locate import locate_bundle
from ..bundle.manifest import Precision
from ..bundle.opening import Bundle
from ..bundle.rewrite import check_place, decision_of, write_with_decision
from ..detector import Detector
from ..errors import EngineError, OutputError, UsageError
from ..host.atomic import check_target, reason, write_bytes
from ..host.console import EXIT_FILES, Interrupted, say
from ..host.progress import hashing_progress, stepping
from ..results.writers import print_tables
from ..tools.datasets.opening import open_data
from ..tools.evaluation.calibrate import CalibrationReport, Quality, Rate, calibrate, check_enough
from ..tools.evaluation.items import Selection, select
from ..tools.evaluation.scorer import DetectorScorer
from ..tools.evaluation.store import Scored, ScoreStore, score


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """The options of ``lare2-rt calibrate``; None means default."""

    bundle: str | None
    out: str
    fpr: float
    split: str | None
    scores: str | None
    report: str | None
    force: bool
    engine: str
    precision: Precision | None
    threads: int | None
    batch: int | None
    seed: int
    crops: int | None = None


def run(data: str, options: CalibrateOptions) -> int:
    """Score the split, fit, write the new bundle; return the exit code. Raises Lare2Error before the first image."""
    warnings.filterwarnings("ignore", module=r"PIL\b")
    out = Path(options.out)
    check_place(locate_bundle(options.bundle).path, out, force=options.force)
    if options.report is not None:
        check_target(Path(options.report), overwrite=True)
    selection = select(open_data(data), options.split, default="val")
    check_enough(selection.generated, selection.groups, options.fpr)  # before hours of scoring
    if selection.split == "train":
        say("note: a detector is surer of images that it was trained on; calibrate on others where you can")
    with hashing_progress() as hashed:
        detector = Detector.load(
            options.bundle,
            engine=options.engine,
            precision=options.precision,
            batch=options.batch,
            threads=options.threads,
            progress=hashed,
            notify=say,
            crops=options.crops,
        )
    with detector:
        _refuse_unfit(detector.bundle)
        outcome = _score(detector, selection, Path(options.scores or f"{options.out}.scores"))
        if isinstance(outcome, int):
            return outcome
        report, failures = _calibrated(outcome, selection, detector, options)
        # A demonstration stays one, whatever its thresholds.
        shown = detector.bundle.manifest.rule.demonstration
        rule = replace(report.rule, crops=detector.info.provenance.crops, demonstration=shown)
        report = replace(report, rule=rule)
        decision = decision_of(rule, _data_line(report, selection))
        bundle = write_with_decision(detector.bundle, out, decision, force=options.force)
    if options.report is not None:
        write_bytes(Path(options.report), (json.dumps(_as_dict(report, bundle, selection), indent=2) + "\n").encode())
    print_tables((_table(report),), sys.stdout, colour=sys.stdout.isatty())
    say(
        f"{out} is bundle {bundle.label}, with the thresholds 'real below' {report.rule.real_below:.4f} and "
        f"'generated from' {report.rule.generated_from:.4f}; {detector.bundle.path} is as it was"
    )
    return EXIT_FILES if failures else 0


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
    scorer = DetectorScorer(detector)
    facts = scorer.provenance
    say(
        f"bundle {facts.bundle_name} ({facts.bundle_id[:12]}) on {facts.engine} {facts.engine_version} {facts.device}, "
        f"{len(selection.items)} images of split {selection.split}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot create {folder}: {reason(error)}", remedy="choose another place with --scores"
        ) from error
    try:
        with stepping("scoring", len(selection.items)) as step:
            return score(scorer, selection.items, store=ScoreStore(folder, scorer, None), step=step)
    except KeyboardInterrupt as error:
        ending = Interrupted(error)
        say(f"{ending}; the scores so far are in {folder}: run the same command again to go on")
        return ending.code
    except (EngineError, OutputError) as error:
        say(f"stopped: {error}; the scores so far are in {folder}")
        return EXIT_FILES


def _calibrated(
    scored: Scored, selection: Selection, detector: Detector, options: CalibrateOptions
) -> tuple[CalibrationReport, int]:
    for failure in scored.failures:
        say(f"{failure.name}: {failure.error}")
    known = ~np.isnan(scored.logits[:, 0])
    report = calibrate(
        scored.logits[known],
        selection.generated[known],
        selection.groups[known],
        current=detector.bundle.manifest.rule,
        rate=options.fpr,
        seed=options.seed,
    )
    return report, len(scored.failures)


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
        "data": {
            "index_sha256": selection.digest,
            "split": selection.split,
            "generators": selection.generators,
        },
    }


def _table(report: CalibrationReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "before", "before, threshold 0.5", "after, on images not fitted on"):
        table.add_column(heading, justify="right" if heading else "left")
    qualities = (report.before, report.before_at_half, report.after)
    rows: list[tuple[str, Sequence[str]]] = [
        ("ECE (15 bins)", [_ece(quality) for quality in qualities]),
        ("real called generated", [_rate(quality.false_positives) for quality in qualities]),
        ("generated called real", [_rate(quality.misses) for quality in qualities]),
        ("unsure", [_rate(quality.unsure) for quality in qualities]),
    ]
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def _ece(quality: Quality) -> str:
    return f"{quality.ece.value:.4f}  {quality.ece.low:.4f}..{quality.ece.high:.4f}"


def _rate(rate: Rate) -> str:
    return f"{rate.value:.2%}  {rate.low:.2%}..{rate.high:.2%}  ({rate.count} of {rate.total})"
