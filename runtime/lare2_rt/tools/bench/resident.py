"""A resident engine process of ``lare2-rt bench``, seen from its parent."""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import asdict
from typing import Any

from ...engines.contract import EngineInfo, Notify
from ...engines.self_check import SelfCheck
from ...errors import EngineError
from ...host.child import Child
from . import worker as bench_worker
from .worker import Assignment

_END_LIMIT = 10.0  # seconds for a process to leave by itself


class Resident:
    """A process with one engine in it, loaded and warm; it sleeps in a read whenever it is not asked for anything.

    Attributes:
        info: what was opened; load: seconds that took, compiling left out.
        warm: milliseconds of one call; peak: bytes of memory at most so far, None where that cannot be told.

    Raises:
        EngineError: the engine cannot be loaded, or its process died.
    """

    def __init__(self, task: Assignment, notify: Notify) -> None:
        self.name = task.engine
        self._start(task)
        try:
            ready = self._answer(notify)
            if "prepared" in ready:
                self.close()
                self._start(task)
                ready = self._answer(notify)
        except BaseException:
            self.close()
            raise
        self.info = EngineInfo(**ready["ready"])
        self.load: float = ready["load_s"]
        self.warm: float = ready["warm_ms"]
        self.peak: int | None = ready["peak"]

    def round(self) -> float:
        """Run one batch; returns milliseconds. Raises EngineError."""
        milliseconds: float = self._ask("round")["ms"]
        return milliseconds

    def check(self) -> SelfCheck | None:
        """Compare with the reference; None where the bundle has nothing to compare with. Raises EngineError."""
        figures = self._ask("check")["check"]
        return None if figures is None else SelfCheck(**figures)

    def measure_peak(self) -> int | None:
        """Read and return the peak memory in bytes. Raises EngineError."""
        self.peak = self._ask("peak")["peak"]
        return self.peak

    def close(self) -> None:
        """End the process, and a compiler that it runs."""
        self._child.close(patience=_END_LIMIT, ask=self._child.process.terminate)

    def _start(self, task: Assignment) -> None:
        self._child = Child(bench_worker.__name__, json.dumps(asdict(task)), text=True, orders=True)

    def _ask(self, order: str) -> dict[str, Any]:
        with contextlib.suppress(OSError):  # dead: its answer, or the lack of one, tells
            self._child.stdin.write(order + "\n")
            self._child.stdin.flush()
        return self._answer(lambda line: None)

    def _answer(self, notify: Notify) -> dict[str, Any]:
        for line in self._child.stdout:
            content: dict[str, Any] = json.loads(line)
            if "notice" in content:
                notify(content["notice"])
            elif "error" in content:
                raise EngineError(content["error"][0], remedy=content["error"][1])
            else:
                return content
        if self._child.wait() == -signal.SIGKILL:
            raise EngineError("its process was killed, most likely for want of memory", remedy="close other programs")
        raise EngineError(f"its process was {self._child.ending()}", remedy="report it")
