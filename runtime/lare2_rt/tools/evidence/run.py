"""What a run shows besides its records: panels, a report, or both, on the same scales."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from ...detection import Detection
from ...detector import Detector
from .heatmaps import Heatmaps, shown
from .page import ModelFacts
from .report import Report
from .scale import Scales, Spread

Progress = Callable[[int], AbstractContextManager[Callable[[object], None]]]


class RunEvidence:
    """Takes results one by one; ``write`` draws everything once all are there. Use it in a ``with`` block.

    Args:
        heatmap: folder of panels; None for none.
        report: whether a page is wanted.
        overwrite: whether what is there may be replaced.

    Raises:
        OutputError, UsageError: as ``Heatmaps``.
    """

    def __init__(self, *, heatmap: Path | None, report: bool = False, overwrite: bool) -> None:
        self._stack = contextlib.ExitStack()
        self._lare, self._attention = Spread(), Spread()
        self._heatmaps: Heatmaps | None = None
        self._report = Report() if report else None
        if heatmap is not None:
            self._heatmaps = self._stack.enter_context(Heatmaps(heatmap, overwrite=overwrite))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def scales(self) -> Scales:
        """The scales of the images so far."""
        return Scales(self._lare.scale(), self._attention.scale())

    def add(self, result: Detection) -> None:
        """Take one result, which needs its ``view`` unless it failed. Raises OutputError."""
        evidence = shown(result)
        if self._report is not None:
            self._report.add(result, evidence)
        if evidence is None:
            return
        self._lare.add(evidence.lare)
        self._attention.add(evidence.attention)
        if self._heatmaps is not None:
            self._heatmaps.add(evidence)

    def write_panels(self, progress: Progress) -> None:
        """Write the panels, if any were asked for; ``progress`` gives a step to call after each. Raises OutputError."""
        if self._heatmaps is not None and len(self._heatmaps):
            with progress(len(self._heatmaps)) as step:
                self._heatmaps.write(self.scales, step)

    def write_report(self, path: Path, facts: ModelFacts, *, overwrite: bool, stopped: str | None = None) -> Path:
        """Write the page that was asked for and return the name that it got. Raises OutputError; see ``Report``."""
        report = self._report if self._report is not None else Report()
        return report.write(path, self.scales, facts, overwrite=overwrite, stopped=stopped)


def facts_of(detector: Detector) -> ModelFacts:
    """Return what a report says about a detector."""
    manifest, info = detector.bundle.manifest, detector.info
    policy = manifest.preprocessing.model_dump()
    return ModelFacts(
        provenance=info.provenance,
        rule=info.rule,
        description=manifest.model.description,
        calibrated_on=manifest.decision.data,
        weights=tuple(f"{source.role}: {source.name} ({source.licence})" for source in manifest.sources),
        policy=", ".join(f"{name} {value}" for name, value in policy.items()),
    )
