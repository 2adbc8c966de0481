"""A resident engine process of ``lare2-rt bench``, seen from its parent."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from ...engines.contract import EngineInfo, Notify
from ...engines.self_check import SelfCheck
from ...errors import EngineError
from ...host.resident import Resident
from . import worker
from .worker import Assignment


class ResidentEngine:
    """A process with one engine in it, loaded and warm.

    Attributes:
        info: what was opened; load: seconds that took, compiling left out.
        warm: milliseconds of one call; peak: bytes of memory at most so far, None where that cannot be told.

    Raises:
        EngineError: the engine cannot be loaded, or its process died.
    """

    def __init__(self, task: Assignment, notify: Notify) -> None:
        ready = self._started(task, notify)
        if "prepared" in ready:
            self.close()
            ready = self._started(task, notify)
        self.info = EngineInfo(**ready["ready"])
        self.load: float = ready["load_s"]
        self.warm: float = ready["warm_ms"]
        self.peak: int | None = ready["peak"]

    def round(self) -> float:
        """Run one batch; returns milliseconds. Raises EngineError."""
        milliseconds: float = self._process.ask("round")["ms"]
        return milliseconds

    def check(self) -> SelfCheck | None:
        """Compare with the reference; None where the bundle has nothing to compare with. Raises EngineError."""
        figures = self._process.ask("check")["check"]
        return None if figures is None else SelfCheck(**figures)

    def measure_peak(self) -> int | None:
        """Read and return the peak memory in bytes. Raises EngineError."""
        self.peak = self._process.ask("peak")["peak"]
        return self.peak

    def close(self) -> None:
        """End the process, and a compiler that it runs."""
        self._process.close()

    def _started(self, task: Assignment, notify: Notify) -> dict[str, Any]:
        self._process = Resident(worker.__name__, json.dumps(asdict(task)), refused=EngineError, died=EngineError)
        try:
            return self._process.answer(notify)
        except BaseException:
            self.close()
            raise
