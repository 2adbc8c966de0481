"""``lare2-rt infer``: expand the inputs, score them, write each result once."""

from __future__ import annotations

import contextlib
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..atomic import check_target, draft_text, reason, taken_in_the_meantime
from ..detector import Detector
from ..errors import Lare2Error, OutputError, UsageError
from ..inputs import expand
from ..locate import locate_bundle
from ..output import Format, Writer, format_for, writer_for
from .app import EXIT_FILES
from .console import Interrupted, ignore_interrupts, say, say_if_restored, silence, uninterrupted
from .progress import hashing_progress, scoring_progress


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


def run(arguments: list[str], options: InferOptions) -> int:
    """Score everything; return the exit code. Raises Lare2Error before the first image is scored."""
    # The decoder answers in sentences; Pillow's warnings about sizes and damaged metadata would come on top.
    warnings.filterwarnings("ignore", module=r"PIL\b")
    paths = expand(arguments)
    target = Path(options.out) if options.out is not None else None
    form = _format(options, target)
    if target is not None:
        check_target(target, overwrite=options.force)
    say_if_restored(locate_bundle(options.bundle))
    with hashing_progress() as hashed:
        detector = Detector.load(
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
        )
    with detector:
        _announce(detector, verbose=options.verbose)
        if target is not None:
            return _score_to_file(detector, paths, form, target=target, force=options.force)
        writer = writer_for(form, sys.stdout, colour=sys.stdout.isatty())
        try:
            outcome = _score(detector, paths, writer)
        except BrokenPipeError:
            raise  # the reader left on purpose: nothing to say
        except OSError as error:
            silence(sys.stdout)
            say(f"stopped: cannot write the results: {reason(error)}; free some space or name a file with --out")
            return EXIT_FILES
    if outcome.stopped is not None:
        say(outcome.stopped)
    return outcome.code


def _score_to_file(detector: Detector, paths: list[str], form: Format, *, target: Path, force: bool) -> int:
    """Write to a file that appears when it is complete; one that was cut short gets a name that says so."""
    partial = target.with_name(target.name + ".partial")
    try:
        with draft_text(target, overwrite=force) as draft:
            outcome = _score(detector, paths, writer_for(form, draft.stream))
            ignore_interrupts()  # all that is left to do takes a moment, and would be lost
            if outcome.stopped is not None:
                draft.target = partial
    except OutputError as error:
        say(f"stopped: {error}")
        return EXIT_FILES
    if outcome.stopped is not None:
        say(f"{outcome.stopped}; the results so far are in {draft.target}")
    elif draft.target != target:
        say(taken_in_the_meantime(target, draft.target))
        return EXIT_FILES
    return outcome.code


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The exit code, and why scoring ended before the last image."""

    code: int
    stopped: str | None = None


def _score(detector: Detector, paths: list[str], writer: Writer) -> _Outcome:
    """Score and write a complete document; a bad file costs a sentence on standard error and exit code 1.

    Raises:
        OSError: the document cannot be written.
    """
    failures = done = 0
    try:
        with scoring_progress(len(paths)) as step, contextlib.closing(detector.detect_many(paths)) as results:
            for result in results:
                with uninterrupted():
                    writer.add(result)
                    done += 1
                failures += result.error is not None
                if result.error is not None:
                    say(f"{result.source}: {result.error}")
                step(result)
        outcome = _Outcome(EXIT_FILES if failures else 0)
    except KeyboardInterrupt as error:
        ignore_interrupts()
        ending = Interrupted(error)
        outcome = _Outcome(ending.code, f"{ending} after {done} of {len(paths)} images")
    except Lare2Error as error:
        outcome = _Outcome(EXIT_FILES, f"stopped after {done} of {len(paths)} images: {error}")
    with uninterrupted():
        writer.end()
    return outcome


def _format(options: InferOptions, target: Path | None) -> Format:
    if options.format is not None:
        return options.format
    if target is None:
        return "table"
    form = format_for(target.suffix)
    if form is None:
        raise UsageError(f"cannot tell the format of {target} from its ending; add --format table, json, jsonl or csv")
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
    if info.rule.note is not None:
        say(f"note: {info.rule.note}")
