"""``lare2-rt evaluate``: labelled images in, metrics with intervals out."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..bundle.locate import locate_bundle
from ..bundle.manifest import Precision
from ..bundle.opening import open_bundle
from ..detector import Detector
from ..host.console import say
from ..host.progress import hashing_progress
from ..tools.datasets.opening import open_data
from ..tools.evaluation.command import ReportOptions, evaluate_and_report
from ..tools.evaluation.items import select
from ..tools.evaluation.run import OpenScorer
from ..tools.evaluation.scorer import DetectorScorer


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """The options of ``lare2-rt evaluate``; None means default."""

    bundles: tuple[str, ...]
    engine: str
    precision: Precision | None
    threads: int | None
    batch: int | None
    threshold: float | None
    split: str | None
    out: str
    corrupt: str | None
    resamples: int
    seed: int
    verify: bool


def run(data: str, options: EvaluateOptions) -> int:
    """Evaluate and write the report; return the exit code. Raises Lare2Error before the first image is scored."""
    selection = select(open_data(data), options.split)
    for name in options.bundles if len(options.bundles) > 1 else ():
        open_bundle(name)  # a wrong one must not come to light after hours with the first
    report = ReportOptions(options.out, options.corrupt, options.resamples, options.seed)
    return evaluate_and_report([_opener(name, options) for name in options.bundles or (None,)], selection, report)


def _opener(name: str | None, options: EvaluateOptions) -> OpenScorer:
    return functools.partial(_open, name, options)


def _open(name: str | None, options: EvaluateOptions) -> DetectorScorer:
    with hashing_progress() as hashed:
        detector = Detector.load(
            locate_bundle(name).path if name is None else name,
            engine=options.engine,
            precision=options.precision,
            batch=options.batch,
            threads=options.threads,
            threshold=options.threshold,
            verify=options.verify,
            progress=hashed,
            notify=say,
        )
    facts = detector.info.provenance
    say(f"bundle {facts.bundle_name} ({facts.bundle_id[:12]}) on {facts.engine} {facts.engine_version} {facts.device}")
    if detector.info.rule.note is not None:
        say(f"note: {detector.info.rule.note}")
    return DetectorScorer(detector)
