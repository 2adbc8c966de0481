"""``lare2-rt infer``: expand the inputs, score them, write each result once."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from PIL import Image

from ..atomic import atomic_text, check_target
from ..detection import Detection
from ..detector import Detector
from ..errors import Lare2Error, UsageError
from ..inputs import expand
from ..output import Format, Writer, format_for, printable, writer_for
from .app import EXIT_FILES, EXIT_INTERRUPTED

Step = Callable[[Detection], None]


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


def run(arguments: list[str], options: InferOptions) -> int:
    """Score everything; return the exit code. Raises Lare2Error before the first image is scored."""
    # The pixel limit is checked by the decoder, which answers with a sentence; Pillow's warning would come on top.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    paths = expand(arguments)
    target = Path(options.out) if options.out is not None else None
    form = _format(options, target)
    if target is not None:
        check_target(target, overwrite=options.force)
    detector = Detector.load(
        options.bundle,
        engine=options.engine,
        precision=options.precision,
        batch=options.batch,
        threads=options.threads,
        threshold=options.threshold,
        verify=options.verify,
    )
    with detector:
        _announce(detector)
        if target is None:
            return _score(detector, paths, writer_for(form, sys.stdout, colour=sys.stdout.isatty()))
        return _score_to_file(detector, paths, form, target=target, force=options.force)


def _score_to_file(detector: Detector, paths: list[str], form: Format, *, target: Path, force: bool) -> int:
    """Write to a file that appears when it is complete; after Ctrl-C, under a name that says it is not."""
    interrupted = target.with_name(target.name + ".partial")
    with contextlib.ExitStack() as stack:
        stream: IO[str] = stack.enter_context(atomic_text(target, overwrite=force))
        code = _score(detector, paths, writer_for(form, stream))
        if code == EXIT_INTERRUPTED:
            stream.flush()
            with atomic_text(interrupted) as partial:
                partial.write(Path(stream.name).read_text(encoding="utf-8"))
            _say(f"the results so far are in {interrupted}")
            raise KeyboardInterrupt
        return code


def _score(detector: Detector, paths: list[str], writer: Writer) -> int:
    """Score and write; a bad file costs a sentence on standard error and exit code 1."""
    failures = done = 0
    try:
        with _progress(len(paths)) as step:
            for result in detector.detect_many(paths):
                writer.add(result)
                done += 1
                failures += result.error is not None
                if result.error is not None:
                    _say(f"{result.source}: {result.error}")
                step(result)
    except KeyboardInterrupt:
        writer.end()
        _say(f"interrupted after {done} of {len(paths)} images")
        return EXIT_INTERRUPTED
    except Lare2Error as error:
        writer.end()
        _say(f"stopped after {done} of {len(paths)} images: {error}")
        return EXIT_FILES
    writer.end()
    return EXIT_FILES if failures else 0


def _format(options: InferOptions, target: Path | None) -> Format:
    if options.format is not None:
        return options.format
    if target is None:
        return "table"
    form = format_for(target.suffix)
    if form is None:
        raise UsageError(f"cannot tell the format of {target} from its ending; add --format table, json, jsonl or csv")
    return form


def _announce(detector: Detector) -> None:
    """Say on standard error what is about to judge the images, and why it may not give verdicts."""
    info = detector.info
    facts = info.provenance
    _say(
        f"bundle {facts.bundle_name} ({facts.bundle_id[:12]}, {facts.bundle_path}) on {facts.engine} "
        f"{facts.engine_version} {facts.device} {facts.precision}, {facts.threads} threads"
    )
    if info.rule.note is not None:
        _say(f"note: {info.rule.note}")


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Step]:
    """Show a progress bar on standard error when that is a terminal."""
    if not sys.stderr.isatty() or total < 2:
        yield lambda result: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("scoring", total=total)
        yield lambda result: progress.advance(task)


def _say(sentence: str) -> None:
    sys.stderr.write(f"lare2-rt: {printable(sentence)}\n")
    sys.stderr.flush()
