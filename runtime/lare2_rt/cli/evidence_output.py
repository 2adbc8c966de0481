"""``--heatmap`` and ``--report`` of ``lare2-rt infer``: collected while images are scored, drawn at the end."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from pathlib import Path

from ..detection import Detection
from ..detector import Detector
from ..errors import OutputError, UsageError
from ..host.atomic import check_target
from ..host.console import EXIT_FILES, Interrupted, heed_interrupts, say
from ..host.progress import stepping
from ..tools.evidence.run import RunEvidence, facts_of


class EvidenceOutput(AbstractContextManager["EvidenceOutput"]):
    """The evidence of a run, or nothing where none was asked for. Use it in a ``with`` block.

    Args:
        heatmap: folder of panels; report: file of the page; None for none.
        out: the results file, which has to be another.
        force: whether files that exist may be replaced.

    Raises:
        OutputError, UsageError: a place that was asked for cannot be used.
    """

    def __init__(self, heatmap: str | None, report: str | None, *, out: str | None, force: bool) -> None:
        self._force = force
        self._folder = None if heatmap is None else Path(heatmap)
        self._page = None if report is None else Path(report)
        self._evidence: RunEvidence | None = None
        self._done = self._total = 0
        if self._page is not None:
            if out is not None and self._page.resolve() == Path(out).resolve():
                raise UsageError(f"{self._page} cannot be both --report and --out", remedy="name two files")
            check_target(self._page, overwrite=force)
        if self._folder is not None or self._page is not None:
            self._evidence = RunEvidence(heatmap=self._folder, report=self._page is not None, overwrite=force)

    def __exit__(self, *error: object) -> None:
        if self._evidence is not None:
            self._evidence.__exit__(None, None, None)

    @property
    def wanted(self) -> bool:
        """Whether results must carry their ``view``."""
        return self._evidence is not None

    def begin(self, total: int) -> None:
        """Expect the results of ``total`` images."""
        self._total = total

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
