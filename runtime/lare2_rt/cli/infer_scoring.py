"""The loop of ``lare2-rt infer``: score, write, count, and know when to stop."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..detector import Detector
from ..errors import Lare2Error, UsageError
from ..host.console import EXIT_FILES, EXIT_FOUND, Interrupted, ignore_interrupts, say, uninterrupted
from ..host.progress import stepping
from ..results.writers import Writer
from .infer_inputs import Source

FailOn = Literal["generated"]
_VERDICTS = ("generated", "real", "unsure")


@dataclass(frozen=True, slots=True)
class Rules:
    """When to stop, and what counts as failure beside files that cannot be scored."""

    fail_fast: bool = False
    fail_on: FailOn | None = None

    def check(self, detector: Detector) -> None:
        """Raise UsageError for a condition that could never be met: a gate that lets everything through is none."""
        if self.fail_on is not None and not detector.info.rule.decides:
            raise UsageError(
                f"--fail-on {self.fail_on} would let every image pass, as this bundle gives no verdicts: "
                f"{detector.info.rule.note}"
            )


@dataclass(slots=True)
class Tally:
    """What became of the images so far; ``None`` among the verdicts counts those that failed."""

    verdicts: Counter[str | None] = field(default_factory=Counter)
    begin: float = field(default_factory=time.perf_counter)

    def add(self, verdict: str | None) -> None:
        """Count one image; None: it failed."""
        self.verdicts[verdict] += 1

    @property
    def done(self) -> int:
        """Number of images counted."""
        return self.verdicts.total()

    def code(self, rules: Rules) -> int:
        """Return the exit code; what ``--fail-on`` looks for weighs more than a file that failed."""
        if rules.fail_on is not None and self.verdicts[rules.fail_on]:
            return EXIT_FOUND
        return EXIT_FILES if self.verdicts[None] else 0

    def summary(self, seconds: float) -> str:
        """Return the line at the end of a run."""
        parts = [f"{self.verdicts[verdict]} {verdict}" for verdict in _VERDICTS if self.verdicts[verdict]]
        if self.verdicts[None]:
            parts.append(f"{self.verdicts[None]} failed")
        return f"{self.done} images in {seconds:.1f} s: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code, why scoring ended before the last image, and the counts."""

    code: int
    tally: Tally
    stopped: str | None = None


def score(
    detector: Detector, sources: Sequence[Source], writer: Writer, rules: Rules, *, earlier: Iterable[str | None] = ()
) -> Outcome:
    """Score and write a complete document; a bad file costs a sentence on standard error and exit code 1.

    Args:
        detector: scores.
        sources: the images.
        writer: takes every result, once.
        rules: see ``Rules``.
        earlier: verdicts that the document holds already; they count as if this run had given them.

    Raises:
        OSError: the document cannot be written.
    """
    tally, seen = Tally(), 0
    for verdict in earlier:
        tally.add(verdict)
    stopped, code = None, 0
    try:
        with stepping("scoring", len(sources)) as step, contextlib.closing(detector.detect_many(sources)) as results:
            for result in results:
                with uninterrupted():
                    writer.add(result)
                    tally.add(result.verdict if result.error is None else None)
                    seen += 1
                if result.error is not None:
                    say(f"{result.source}: {result.error}")
                    if rules.fail_fast and seen < len(sources):
                        stopped = f"stopped after {seen} of {len(sources)} images: --fail-fast was given"
                        break
                step(result)
    except KeyboardInterrupt as error:
        ignore_interrupts()
        ending = Interrupted(error)
        stopped, code = f"{ending} after {seen} of {len(sources)} images", ending.code
    except Lare2Error as error:
        stopped, code = f"stopped after {seen} of {len(sources)} images: {error}", EXIT_FILES
    with uninterrupted():
        writer.end()
    return Outcome(code or tally.code(rules), tally, stopped)


def say_summary(outcome: Outcome) -> None:
    """Print the counts, where there is more than one image to count."""
    if outcome.tally.done > 1:
        say(outcome.tally.summary(time.perf_counter() - outcome.tally.begin))
