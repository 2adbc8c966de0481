"""Where the results of ``lare2-rt infer`` go: standard output, or a file that appears when it is complete."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import OutputError
from ..host.atomic import draft_bytes, draft_text, reason, taken_in_the_meantime
from ..host.console import EXIT_FILES, ignore_interrupts, say, silence
from ..results.writers import Format, Writer, parquet_writer, writer_for
from .infer_scoring import Outcome, say_summary

Scoring = Callable[[Writer], Outcome]


def to_stdout(score: Scoring, form: Format) -> int:
    """Write to standard output; returns the exit code. Raises BrokenPipeError when its reader leaves."""
    writer = writer_for(form, sys.stdout, colour=sys.stdout.isatty())
    try:
        outcome = score(writer)
    except BrokenPipeError:
        raise  # the reader left on purpose: nothing to say
    except OSError as error:
        silence(sys.stdout)
        say(f"stopped: cannot write the results: {reason(error)}; free some space or name a file with --out")
        return EXIT_FILES
    if outcome.stopped is not None:
        say(outcome.stopped)
    say_summary(outcome)
    return outcome.code


def to_file(score: Scoring, form: Format, *, target: Path, force: bool) -> int:
    """Write to a file that appears when it is complete; one that was cut short gets a name that says so."""
    partial = target.with_name(target.name + ".partial")
    try:
        with (draft_bytes if form == "parquet" else draft_text)(target, overwrite=force) as draft:
            outcome = score(parquet_writer(draft.stream) if form == "parquet" else writer_for(form, draft.stream))
            ignore_interrupts()  # all that is left to do takes a moment, and would be lost
            if outcome.stopped is not None:
                draft.target = partial
    except OutputError as error:
        say(f"stopped: {error}")
        return EXIT_FILES
    code = outcome.code
    if outcome.stopped is not None:
        say(f"{outcome.stopped}; the results so far are in {draft.target}")
    elif draft.target != target:
        say(taken_in_the_meantime(target, draft.target))
        code = EXIT_FILES
    say_summary(outcome)
    return code
