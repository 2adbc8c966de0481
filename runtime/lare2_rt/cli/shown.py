"""``--heatmap`` and ``--report`` of ``lare2-rt infer``: collected while images are scored, drawn at the end."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..detection import Detection
from ..detector import Detector
from ..errors import OutputError, UsageError
from ..host.atomic import check_target
from ..host.console import EXIT_FILES, Interrupted, heed_interrupts, say
from ..host.progress import stepping
from ..results.writers import Writer
from ..tools.evidence.run import RunEvidence, facts_of


@dataclass(frozen=True, slots=True)
class ShownOptions:
    """What to show besides the records; None for nothing. ``out`` is the results file, which has to be another."""

    heatmap: str | None
    report: str | None
    out: str | None
    force: bool


class Shown:
    """The evidence of a run, or nothing where none was asked for. Use it in a ``with`` block.

    Raises:
        OutputError, UsageError: a place that was asked for cannot be used.
    """

    def __init__(self, options: ShownOptions) -> None:
        self._force = options.force
        self._folder = None if options.heatmap is None else Path(options.heatmap)
        self._page = None if options.report is None else Path(options.report)
        self._evidence: RunEvidence | None = None
        self._done = self._total = 0
        if self._page is not None:
            if options.out is not None and self._page.resolve() == Path(options.out).resolve():
                raise UsageError(f"{self._page} cannot be both --report and --out", remedy="name two files")
            check_target(self._page, overwrite=options.force)
        if self._folder is not None or self._page is not None:
            report = self._page is not None
            self._evidence = RunEvidence(heatmap=self._folder, report=report, overwrite=options.force)

    @property
    def wanted(self) -> bool:
        """Whether results must carry their ``view``."""
        return self._evidence is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._evidence is not None:
            self._evidence.__exit__(kind, error, trace)

    def beside(self, writer: Writer, total: int) -> Writer:
        """Return a writer that hands ``total`` results to ``writer`` and keeps what is to be shown of them."""
        self._total = total
        return writer if self._evidence is None else _Beside(writer, self)

    def add(self, result: Detection) -> None:
        """Take one result. Raises OutputError."""
        if self._evidence is not None:
            self._evidence.add(result)
            self._done += 1

    def finish(self, code: int, detector: Detector) -> int:
        """Draw what was asked for after a run that ended with ``code``; return the exit code of all."""
        if self._evidence is None or not self._total:
            return code
        ended = code >= 128  # by a signal
        try:
            if self._page is not None:
                self._write_page(self._evidence, self._page, detector)
            if self._folder is not None and not ended:
                heed_interrupts()
                self._evidence.write_panels(functools.partial(stepping, "drawing"))
                say(f"panels are in {self._folder}")
        except OutputError as error:
            say(str(error))
            return max(code, EXIT_FILES)
        except KeyboardInterrupt as error:
            ending = Interrupted(error)
            say(f"{ending} while panels were drawn; those that are in {self._folder} are complete, run it again")
            return ending.code
        if self._folder is not None and ended:
            say(f"no panels were drawn in {self._folder}, as their colours need the whole run; run it again")
        return code

    def _write_page(self, evidence: RunEvidence, path: Path, detector: Detector) -> None:
        """Write the page; one about a part of the images gets a name that says so, and says so itself."""
        stopped = None
        if self._done < self._total:
            stopped = f"the run was stopped after {self._done} of {self._total} images"
            path = path.with_name(f"{path.stem}.partial{path.suffix}")
        got = evidence.write_report(path, facts_of(detector), overwrite=self._force, stopped=stopped)
        say(f"the report is in {got}")


class _Beside:
    def __init__(self, writer: Writer, shown: Shown) -> None:
        self._writer, self._shown = writer, shown

    def add(self, result: Detection) -> None:
        self._writer.add(result)
        self._shown.add(result)

    def end(self) -> None:
        self._writer.end()
