"""A resident process that is asked to do one thing at a time, seen from its parent."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Self

from lare2_rt.errors import Lare2Error
from lare2_rt.host.text import printable

_WORKER = Path(__file__).with_name("throughput_worker.py")
_ANSWER_LIMIT = 3600.0  # seconds; a full-size build takes minutes
_END_LIMIT = 20.0
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class RefusedError(Lare2Error):
    """The technique cannot be used here; the text says why and what to do."""


class FailedError(Lare2Error):
    """The process died or raised; the text says how, its log has the rest."""


def plain(text: str) -> str:
    """Return foreign text without colours and other control sequences: libraries write for a terminal."""
    return printable(_ESCAPE.sub("", text))


class Resident:
    """A worker process. It sleeps in a read from its pipe whenever it is not asked for anything.

    Args:
        name: for messages and the log file; folder: where its output goes, which libraries like to write to.
        environment: variables beside this process's own; they must be there before the libraries are loaded.
    """

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        ours, theirs = Pipe()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(_WORKER), str(theirs.fileno()), str(os.getpid())],
                env={**os.environ, **environment},
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._pipe: Connection[Any, Any] = ours
        # The clock of another process's CPU time, all threads together, in nanoseconds: what clock_getcpuclockid
        # returns on Linux. Reading it does not wake the process.
        self._clock = (~self._process.pid << 3) | 2

    def ask(self, *message: object, limit: float = _ANSWER_LIMIT) -> Any:  # noqa: ANN401 - whatever was asked for
        """Send a message and return the answer.

        Raises:
            RefusedError: the worker cannot do it here.
            FailedError: it raised, died, or gave no answer in ``limit`` seconds.
        """
        try:
            self._pipe.send(message)
            if not self._pipe.poll(limit):
                self.kill()
                raise FailedError(f"{self.name} gave no answer within {limit:.0f} s and was ended")
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            raise FailedError(f"{self.name} {self._how_it_died()}") from None
        if kind == "refused":
            raise RefusedError(plain(content))
        if kind == "failed":
            raise FailedError(f"{self.name} failed: {plain(content)}; the trace is in logs/{self.log.name}")
        return content

    def cpu_seconds(self) -> float:
        """Return the CPU time that the process has used since its start; 0 once it is gone."""
        try:
            return time.clock_gettime(self._clock)
        except OSError:
            return 0.0

    def resident_bytes(self) -> int:
        """Return its resident memory, shared pages included; 0 once it is gone."""
        return self._status("VmRSS")

    def peak_bytes(self) -> int:
        """Return the largest resident memory that it ever had."""
        return self._status("VmHWM")

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Let the process end, and end it if it does not."""
        self._pipe.close()  # the worker's read ends with the pipe
        try:
            self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:  # nothing that it is still doing is wanted any more
            self.kill()
        self.close()

    def _status(self, field: str) -> int:
        try:
            lines = Path(f"/proc/{self._process.pid}/status").read_text().splitlines()
        except OSError:
            return 0
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)

    def _how_it_died(self) -> str:
        try:
            code = self._process.wait(_END_LIMIT)
        except subprocess.TimeoutExpired:
            self.kill()
            return f"closed its pipe without an answer; see logs/{self.log.name}"
        if code == -signal.SIGKILL:
            return "was killed, probably for lack of memory: close other programs, or leave this row out"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"{how}{f' after writing {plain(lines[-1])[:200]!r}' if lines else ''}; see logs/{self.log.name}"
