"""``lare2-rt infer --resume``: results that a kill cannot take away, and a run that goes on where another ended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO

from ..detection import Detection
from ..detector import Detector
from ..errors import OutputError, UsageError
from ..host.atomic import check_target, draft_text, fsync_folder, reason, settle, taken_in_the_meantime
from ..host.console import EXIT_FILES, ignore_interrupts, say
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
from ..results.writers import Format, Writer, writer_for
from .infer_inputs import Source
from .infer_scoring import Outcome, say_summary

Scoring = Callable[[Sequence[Source], Writer, Iterable[str | None]], Outcome]
_SYNC = 1.0  # seconds between moments from which even a power cut loses nothing


def check_resume(target: Path | None, form: Format, sources: Sequence[Source], *, force: bool) -> Path:
    """Return the target, or raise UsageError or OutputError where ``--resume`` cannot work."""
    if target is None:
        raise UsageError("--resume goes on with a file", remedy="name it with --out")
    if form not in ("jsonl", "csv", "parquet"):
        raise UsageError(f"--resume writes jsonl, csv or parquet, not {form}", remedy="choose one of these")
    if force:
        raise UsageError("--resume keeps what a file holds and --force replaces it", remedy="choose one of them")
    if not all(isinstance(source, str) for source in sources):
        raise UsageError("standard input cannot be read again by a resumed run", remedy="give the image as a file")
    check_target(target, overwrite=True)
    return target


def to_resumable(score: Scoring, detector: Detector, sources: Sequence[Source], *, form: Format, target: Path) -> int:
    """Add what is missing to the results of earlier runs; returns the exit code. Raises UsageError or OutputError."""
    partial, lines = target.with_name(target.name + ".partial"), _lines(form)
    wanted = identity_of(detector.info.provenance, detector.info.rule)
    lock: FileLock | None = None
    try:
        if os.path.lexists(partial):
            check_target(partial, overwrite=True)
            _unpack(partial, form)
        partial.touch()  # with the rights of any new file, which a lock would not give it
        lock = try_acquire(partial, "exclusive")
        if lock is None:
            raise UsageError(
                f"another lare2-rt is writing {partial}", remedy="wait for its end, or choose another name"
            )
        extends = target.exists()
        if extends:
            _begin_from(target, partial, lines, wanted)
        earlier = read_earlier(partial, lines)
        earlier.check(wanted, partial)
        missing = earlier.missing(sources, lambda source: shown_name(str(source), lines))
        if earlier.verdicts:
            say(f"{len(earlier.verdicts)} results are there from before, {len(missing)} images are left")
        outcome = _append(score, missing, earlier, partial=partial, form=lines)
        if outcome.stopped is not None:
            say(f"{outcome.stopped}; the results so far are in {partial}, and --resume goes on from there")
            code = outcome.code
        else:
            ignore_interrupts()
            code = _finish(partial, target, form=form, extends=extends) or outcome.code
        say_summary(outcome)
        return code
    except OSError as error:
        say(f"stopped: cannot write {partial}: {reason(error)}; free some space, and --resume goes on from there")
        return EXIT_FILES
    finally:
        if lock is not None:
            lock.release(remove=_is_empty(partial))


def _lines(form: Format) -> Lines:
    return "csv" if form == "csv" else "jsonl"


def _unpack(partial: Path, form: Format) -> None:
    """Turn a Parquet file that a run without ``--resume`` was interrupted in into lines, to which can be added."""
    if form == "parquet" and is_parquet(partial):
        with draft_text(partial) as draft:
            draft.stream.writelines(line.decode() for line in lines_of(partial))


def _begin_from(target: Path, partial: Path, form: Lines, wanted: Identity) -> None:
    """Let a file in the making begin with the results of a complete one; raises UsageError where it has others."""
    related = relation(partial, lines_of(target))
    if related == "other":
        raise UsageError(f"{target} and {partial} hold different results", remedy="move one of them away")
    if related == "shorter":
        read_earlier(target, form).check(wanted, target)  # before anything of it stands elsewhere
        with partial.open("wb") as stream:
            stream.writelines(lines_of(target))


def _append(score: Scoring, missing: Sequence[Source], earlier: Earlier, *, partial: Path, form: Lines) -> Outcome:
    with partial.open("r+b") as stream:
        stream.truncate(earlier.end)
    with partial.open("a", encoding="utf-8", errors="backslashreplace", newline="") as text:
        outcome = score(missing, _Durable(writer_for(form, text, head=earlier.end == 0), text), earlier.verdicts)
        text.flush()
        os.fsync(text.fileno())
    return outcome


def _finish(partial: Path, target: Path, *, form: Format, extends: bool) -> int:
    """Give a complete file its name; returns an exit code where it could not have it."""
    try:
        complete = _packed(partial) if form == "parquet" else partial
        got = settle(complete, target, overwrite=extends)
        fsync_folder(target.parent)
        if complete != partial:
            partial.unlink()
    except OutputError as error:
        say(f"stopped: {error}; the results are in {partial}, and --resume goes on from there")
        return EXIT_FILES
    if got != target:
        say(taken_in_the_meantime(target, got))
        return EXIT_FILES
    return 0


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


def _is_empty(path: Path) -> bool:
    return path.is_file() and path.stat().st_size == 0


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
