"""Where the results of ``lare2-rt infer`` go: standard output, a file, or a file that a later run goes on with."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..detection import Detection
from ..detector import Detector
from ..errors import OutputError, UsageError
from ..host.atomic import check_target, draft_bytes, draft_text, fsync_folder, reason, settle, taken_in_the_meantime
from ..host.console import EXIT_FILES, EXIT_FOUND, ignore_interrupts, say, silence
from ..host.locks import FileLock, try_acquire
from ..results.parquet import ParquetRecords
from ..results.partial import (
    Earlier,
    Identity,
    Lines,
    identity_of,
    is_parquet,
    lines_of,
    read_earlier,
    relation,
    shown_name,
)
from ..results.writers import Format, Writer, parquet_writer, writer_for

Source = str | IO[bytes]
_SYNC = 1.0  # seconds between moments from which even a power cut loses nothing
_VERDICTS = ("generated", "real", "unsure")


@dataclass(slots=True)
class Run:
    """What a run has to do, and what became of it.

    Attributes:
        sources: the images to score.
        fail_on: the verdict that decides the exit code.
        verdicts: how often each was given, also by the runs that this one goes on with; None counts failures.
        done: images of this run that have a result.
        stopped: why the run ended before the last image.
        code: the exit code, where something else than the verdicts decides it.
    """

    sources: Sequence[Source]
    fail_on: str | None = None
    verdicts: Counter[str | None] = field(default_factory=Counter)
    done: int = 0
    stopped: str | None = None
    code: int = 0

    def count(self, result: Detection) -> None:
        """Count one result."""
        self.verdicts[result.verdict if result.error is None else None] += 1
        self.done += 1

    @property
    def exit_code(self) -> int:
        """What ``--fail-on`` looks for weighs more than a file that failed."""
        found = EXIT_FOUND if self.fail_on is not None and self.verdicts[self.fail_on] else 0
        return self.code or found or (EXIT_FILES if self.verdicts[None] else 0)

    def summary(self, seconds: float) -> str:
        """Return the line at the end of a run."""
        parts = [f"{self.verdicts[verdict]} {verdict}" for verdict in _VERDICTS if self.verdicts[verdict]]
        if self.verdicts[None]:
            parts.append(f"{self.verdicts[None]} failed")
        return f"{self.verdicts.total()} images in {seconds:.1f} s: {', '.join(parts)}"


class ResultsLost(Exception):  # noqa: N818 - reported by the command, never by the library
    """The results, or the rest of them, cannot be written; the text says why and what to do."""


# Takes the results of a run in a block; afterwards it has said where they are, if not where they were wanted. It may
# take sources from the run that have results already. It raises UsageError and OutputError where results cannot go
# there, ResultsLost where they cannot be written any more, BrokenPipeError where the reader of standard output left.
Target = Callable[[Run, Detector], AbstractContextManager[Writer]]


@contextlib.contextmanager
def standard_output(run: Run, detector: Detector, *, form: Format) -> Iterator[Writer]:
    """A ``Target`` for any format but Parquet."""
    try:
        yield writer_for(form, sys.stdout, colour=sys.stdout.isatty())
    except BrokenPipeError:
        raise  # the reader left on purpose: nothing to say
    except OSError as error:
        silence(sys.stdout)
        raise ResultsLost(
            f"cannot write the results: {reason(error)}; free some space or name a file with --out"
        ) from error
    if run.stopped is not None:
        say(run.stopped)


@contextlib.contextmanager
def complete_file(run: Run, detector: Detector, *, path: Path, form: Format, force: bool) -> Iterator[Writer]:
    """A ``Target``: a file that appears when it is complete; one that was cut short gets a name that says so."""
    binary = form == "parquet"
    try:
        with (draft_bytes if binary else draft_text)(path, overwrite=force) as draft:
            yield parquet_writer(draft.stream) if binary else writer_for(form, draft.stream)
            ignore_interrupts()  # all that is left to do takes a moment, and would be lost
            if run.stopped is not None:
                draft.target = _partial(path)
    except OutputError as error:
        raise ResultsLost(str(error)) from error
    if run.stopped is not None:
        say(f"{run.stopped}; the results so far are in {draft.target}")
    elif draft.target != path:
        say(str(taken_in_the_meantime(path, draft.target)))
        run.code = EXIT_FILES


def check_resumable(path: Path | None, form: Format, sources: Sequence[Source], *, force: bool) -> Path:
    """Return the path where ``--resume`` can work with it; raises UsageError or OutputError."""
    if path is None:
        raise UsageError("--resume goes on with a file", remedy="name it with --out")
    if form not in ("jsonl", "csv", "parquet"):
        raise UsageError(f"--resume writes jsonl, csv or parquet, not {form}", remedy="choose one of these")
    if force:
        raise UsageError("--resume keeps what a file holds and --force replaces it", remedy="choose one of them")
    if not all(isinstance(source, str) for source in sources):
        raise UsageError("standard input cannot be read again by a resumed run", remedy="give the image as a file")
    check_target(path, overwrite=True)
    return path


@contextlib.contextmanager
def resumable_file(run: Run, detector: Detector, *, path: Path, form: Format) -> Iterator[Writer]:
    """A ``Target``: results are written line by line into ``NAME.partial``, which a kill cannot take away."""
    partial = _partial(path)
    lines: Lines = "csv" if form == "csv" else "jsonl"
    lock: FileLock | None = None
    try:
        if os.path.lexists(partial):
            check_target(partial, overwrite=True)
            if form == "parquet" and is_parquet(partial):  # of an interrupted run without --resume
                with draft_text(partial) as draft:
                    draft.stream.writelines(line.decode() for line in lines_of(partial))
        partial.touch()  # with the rights of any new file, which a lock would not give it
        lock = try_acquire(partial, "exclusive")
        if lock is None:
            raise UsageError(
                f"another lare2-rt is writing {partial}", remedy="wait for its end, or choose another name"
            )
        wanted = identity_of(detector.info.provenance, detector.info.rule)
        extends = path.exists()
        if extends:
            _begin_from(path, partial, lines, wanted)
        earlier = read_earlier(partial, lines)
        earlier.check(wanted, partial)
        run.sources = earlier.missing(run.sources, lambda source: shown_name(str(source), lines))
        run.verdicts.update(earlier.verdicts)
        if earlier.verdicts:
            say(f"{len(earlier.verdicts)} results are there from before, {len(run.sources)} images are left")
        with _appending(partial, earlier, lines) as writer:
            yield writer
        if run.stopped is not None:
            say(f"{run.stopped}; the results so far are in {partial}, and --resume goes on from there")
        else:
            ignore_interrupts()
            run.code = _finish(partial, path, form, extends=extends)
    except OSError as error:
        raise ResultsLost(
            f"cannot write {partial}: {reason(error)}; free some space, and --resume goes on from there"
        ) from error
    finally:
        if lock is not None:
            lock.release(remove=partial.is_file() and partial.stat().st_size == 0)


def _begin_from(complete: Path, partial: Path, form: Lines, wanted: Identity) -> None:
    """Let a file in the making begin with a complete one's results; raises UsageError where it has others."""
    related = relation(partial, lines_of(complete))
    if related == "other":
        raise UsageError(f"{complete} and {partial} hold different results", remedy="move one of them away")
    if related == "shorter":
        read_earlier(complete, form).check(wanted, complete)  # before anything of it stands elsewhere
        with partial.open("wb") as stream:
            stream.writelines(lines_of(complete))


def _finish(partial: Path, path: Path, form: Format, *, extends: bool) -> int:
    """Give a complete file its name; returns an exit code where it could not have it."""
    try:
        complete = _packed(partial) if form == "parquet" else partial
        got = settle(complete, path, overwrite=extends)
        fsync_folder(path.parent)
        if complete != partial:
            partial.unlink()
    except OutputError as error:
        say(f"stopped: {error}; the results are in {partial}, and --resume goes on from there")
        return EXIT_FILES
    if got != path:
        say(str(taken_in_the_meantime(path, got)))
        return EXIT_FILES
    return 0


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def _appending(partial: Path, earlier: Earlier, form: Lines) -> Iterator[Writer]:
    """Cut what a kill left of a line, and yield a writer of what follows."""
    with partial.open("r+b") as stream:
        stream.truncate(earlier.end)
    with partial.open("a", encoding="utf-8", errors="backslashreplace", newline="") as text:
        yield _Durable(writer_for(form, text, columns=earlier.columns or None), text)
        text.flush()
        os.fsync(text.fileno())


def _packed(partial: Path) -> Path:
    """Return a Parquet file of the lines; always under one name, so that the next run replaces what a kill left."""
    packed = partial.with_name(f".{partial.name}.packed")
    try:
        with packed.open("wb") as stream:
            writer = ParquetRecords(stream)
            for line in lines_of(partial):
                writer.add(json.loads(line))
            writer.end()
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        packed.unlink(missing_ok=True)
        raise
    return packed


class _Durable:
    """Hands results on, and now and then makes them survive a power cut; a kill they survive at once."""

    def __init__(self, writer: Writer, stream: IO[str]) -> None:
        self._writer, self._stream, self._synced = writer, stream, time.monotonic()

    def add(self, result: Detection) -> None:
        self._writer.add(result)
        if time.monotonic() - self._synced > _SYNC:
            os.fsync(self._stream.fileno())
            self._synced = time.monotonic()

    def end(self) -> None:
        self._writer.end()
