"""``lare2-rt infer``: expand the inputs, score them, write each result once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bundle.locate import locate_bundle
from ..detector import Detector
from ..errors import UsageError
from ..host.atomic import check_target
from ..host.console import say, say_if_restored
from ..host.progress import hashing_progress
from ..pixels.limits import Limits
from ..results.arrow import arrow
from ..results.writers import Format, Writer, format_for
from .infer_inputs import Source, gather
from .infer_resume import check_resume, to_resumable
from .infer_scoring import FailOn, Outcome, Rules, score
from .infer_targets import to_file, to_stdout
from .shown import Shown, ShownOptions


@dataclass(frozen=True, slots=True)
class InferOptions:
    """The options of ``lare2-rt infer``; None means default."""

    bundle: str | None
    format: Format | None
    out: str | None
    force: bool
    threshold: float | None
    engine: str
    precision: Literal["fp32", "fp16"] | None
    batch: int | None
    threads: int | None
    verify: bool
    cuda_graph: bool
    verbose: bool
    lists: tuple[str, ...]
    null: bool
    limits: Limits
    isolate: bool
    fail_fast: bool
    fail_on: FailOn | None
    resume: bool
    heatmap: str | None = None
    report: str | None = None
    crops: int | None = None


def run(arguments: list[str], options: InferOptions) -> int:
    """Score everything; return the exit code. Raises Lare2Error before the first image is scored."""
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    sources = gather(arguments, options.lists, null=options.null)
    target = Path(options.out) if options.out is not None else None
    form = _format(options, target)
    resumed = check_resume(target, form, sources, force=options.force) if options.resume else None
    if target is not None and resumed is None:
        check_target(target, overwrite=options.force)
    if form == "parquet":
        arrow()  # missing, it should not show at the end
    say_if_restored(locate_bundle(options.bundle))
    rules = Rules(fail_fast=options.fail_fast, fail_on=options.fail_on)
    wanted = ShownOptions(heatmap=options.heatmap, report=options.report, out=options.out, force=options.force)
    with Shown(wanted) as shown, _load(options, views=shown.wanted) as detector:
        _announce(detector, verbose=options.verbose)
        rules.check(detector)

        def some(chosen: Sequence[Source], writer: Writer, earlier: Iterable[str | None] = ()) -> Outcome:
            return score(detector, chosen, shown.beside(writer, len(chosen)), rules, earlier=earlier)

        def scored(writer: Writer) -> Outcome:
            return some(sources, writer)

        if resumed is not None:
            return shown.finish(to_resumable(some, detector, sources, form=form, target=resumed), detector)
        if target is None:
            return shown.finish(to_stdout(scored, form), detector)
        return shown.finish(to_file(scored, form, target=target, force=options.force), detector)


def _load(options: InferOptions, *, views: bool) -> Detector:
    with hashing_progress() as hashed:
        return Detector.load(
            options.bundle,
            engine=options.engine,
            precision=options.precision,
            batch=options.batch,
            threads=options.threads,
            threshold=options.threshold,
            verify=options.verify,
            progress=hashed,
            notify=say,
            cuda_graph=options.cuda_graph,
            limits=options.limits,
            isolate=options.isolate,
            crops=options.crops,
            keep_views=views,
        )


def _format(options: InferOptions, target: Path | None) -> Format:
    if options.format == "parquet" and target is None:
        raise UsageError("Parquet is no text for standard output", remedy="name a file with --out")
    if options.format is not None:
        return options.format
    if target is None:
        return "table"
    form = format_for(target.suffix)
    if form is None:
        raise UsageError(
            f"cannot tell the format of {target} from its ending", remedy="add --format, such as jsonl or csv"
        )
    return form


def _announce(detector: Detector, *, verbose: bool) -> None:
    """Say on standard error what is about to judge the images, and why it may not give verdicts."""
    info = detector.info
    facts = info.provenance
    for rejected in info.rejected if verbose else ():
        say(f"engine {rejected.name} is not used: {rejected.reason}")
    say(
        f"bundle {facts.bundle_name} ({facts.bundle_id[:12]}, {facts.bundle_path}) on {facts.engine} "
        f"{facts.engine_version} {facts.device} {facts.precision}, {facts.threads} threads"
    )
    for note in (info.rule.note, info.misfit):
        if note is not None:
            say(f"note: {note}")
