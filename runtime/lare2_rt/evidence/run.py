"""What a run shows besides its records: panels, a report, or both, on the same scales."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

from ..detection import Detection
from .heatmaps import Heatmaps, shown
from .scale import Scales, Spread

Progress = Callable[[int], AbstractContextManager[Callable[[object], None]]]


class RunEvidence:
    """Takes results one by one; ``write`` draws everything once all are there. Use it in a ``with`` block.

    Args:
        heatmap: folder of panels; None for none.
        overwrite: whether what is there may be replaced.

    Raises:
        OutputError, UsageError: as ``Heatmaps``.
    """

    def __init__(self, *, heatmap: Path | None, overwrite: bool) -> None:
        self._stack = contextlib.ExitStack()
        self._lare, self._attention = Spread(), Spread()
        self._heatmaps: Heatmaps | None = None
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
