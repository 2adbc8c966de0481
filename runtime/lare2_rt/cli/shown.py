"""``--heatmap`` of ``lare2-rt infer``: collected while images are scored, drawn when the last one is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ..detection import Detection
from ..errors import OutputError
from ..evidence.run import RunEvidence
from ..output import Writer
from .app import EXIT_FILES
from .console import Interrupted, heed_interrupts, say
from .progress import drawing_progress


@dataclass(frozen=True, slots=True)
class ShownOptions:
    """What to show besides the records; None for nothing."""

    heatmap: str | None
    force: bool


class Shown:
    """The evidence of a run, or nothing where none was asked for. Use it in a ``with`` block.

    Raises:
        OutputError, UsageError: a place that was asked for cannot be used.
    """

    def __init__(self, options: ShownOptions) -> None:
        self._folder = Path(options.heatmap) if options.heatmap is not None else None
        self._evidence: RunEvidence | None = None
        if self._folder is not None:
            self._evidence = RunEvidence(heatmap=self._folder, overwrite=options.force)

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

    def beside(self, writer: Writer) -> Writer:
        """Return a writer that hands results to ``writer`` and keeps what is to be shown of them."""
        return writer if self._evidence is None else _Beside(writer, self._evidence)

    def finish(self, code: int) -> int:
        """Draw what was asked for after a run that ended with ``code``; return the exit code of all."""
        if self._evidence is None:
            return code
        if code >= 128:  # ended by a signal
            if self._folder is not None:
                say(f"no panels were drawn in {self._folder}, as their colours need the whole run; run it again")
            return code
        try:
            heed_interrupts()
            self._evidence.write_panels(drawing_progress)
        except OutputError as error:
            say(str(error))
            return EXIT_FILES
        except KeyboardInterrupt as error:
            ending = Interrupted(error)
            say(f"{ending} while panels were drawn; those that are in {self._folder} are complete, run it again")
            return ending.code
        if self._folder is not None:
            say(f"panels are in {self._folder}")
        return code


class _Beside:
    def __init__(self, writer: Writer, evidence: RunEvidence) -> None:
        self._writer, self._evidence = writer, evidence

    def add(self, result: Detection) -> None:
        self._writer.add(result)
        self._evidence.add(result)

    def end(self) -> None:
        self._writer.end()
