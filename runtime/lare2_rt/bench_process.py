"""A resident engine process of ``lare2-rt bench``, seen from its parent."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .bench_worker import Assignment
from .engines import EngineInfo, Notify
from .errors import EngineError
from .selfcheck import SelfCheck

_CODE = "import sys; sys.path.append(sys.argv[1]); from lare2_rt.bench_worker import main; main(sys.argv[2])"
_ROOT = Path(__file__).parents[1]
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
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.terminate()
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _start(self, task: Assignment) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        command = [sys.executable, "-P", "-c", _CODE, str(_ROOT), json.dumps(asdict(task))]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )

    def _ask(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # dead: its answer, or the lack of one, tells
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        return self._answer(lambda line: None)

    def _answer(self, notify: Notify) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            content: dict[str, Any] = json.loads(line)
            if "notice" in content:
                notify(content["notice"])
            elif "error" in content:
                raise EngineError(content["error"])
            else:
                return content
        raise EngineError(self._death())

    def _death(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return "its process was killed, most likely for want of memory; close other programs"
        how = f"stopped by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"its process was {how}" + (f": {said[-1][:200]}" if said else "") + "; report it"
