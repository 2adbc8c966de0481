"""A resident process that calls functions by name, seen from its parent."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from benchmarks.common.command import ROOT
from lare2_rt.errors import Lare2Error
from lare2_rt.host import resident
from lare2_rt.host.text import printable

_WORKER = "benchmarks.common.worker"
_ANSWER_LIMIT = 3600.0  # seconds; a full-size build takes minutes
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class RefusedError(Lare2Error):
    """It cannot be had on this machine; nothing failed."""


class FailedError(Lare2Error):
    """The process died or raised; its log has the rest."""


def plain(text: str) -> str:
    """Return foreign text without colours and other control sequences: libraries write for a terminal."""
    return printable(_ESCAPE.sub("", text))


def child_environment(**variables: str) -> dict[str, str]:
    """Return the variables of a child that finds the benchmarks, from whatever folder it is started."""
    known = filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known), **variables}


class Resident:
    """A process with a ``Worker`` in it. It sleeps in a read whenever it is not asked for anything.

    It is the head of a group of processes, so that Ctrl-C spares it and nothing that it starts outlives it.

    Args:
        name: for messages and the log file; logs: folder of what its libraries print; default: nowhere.
        environment: variables beside this process's own; they must be there before the libraries are loaded.
        worker: ``module:class``, whose methods are what can be asked for.

    Raises:
        FailedError: it cannot be started.
    """

    def __init__(
        self, name: str, logs: Path | None, environment: Mapping[str, str], *, worker: str = f"{_WORKER}:Worker"
    ) -> None:
        self.name = name
        self._log = None if logs is None else logs / f"{name}.log"
        self._resident = resident.Resident(
            _WORKER,
            str(os.getpid()),
            worker,
            refused=RefusedError,
            died=FailedError,
            name=name,
            env=child_environment(**environment),
            log=self._log,
        )
        self.pid = self._resident.child.process.pid
        # The clock of another process's CPU time, all threads together, in nanoseconds: what clock_getcpuclockid
        # returns on Linux. Reading it does not wake the process.
        self._clock = (~self.pid << 3) | 2

    def ask(self, verb: str, *arguments: object, limit: float = _ANSWER_LIMIT) -> Any:  # noqa: ANN401 - any answer
        """Call a method of the worker with plain data and return its answer.

        Raises:
            RefusedError: the worker cannot do it here.
            FailedError: it raised, died, or gave no answer in ``limit`` seconds.
        """
        answer = self._resident.ask(verb, *arguments, limit=limit)
        if "failed" in answer:
            where = "see above" if self._log is None else f"the trace is in logs/{self._log.name}"
            raise FailedError(f"{self.name} failed: {plain(answer['failed'])}", remedy=where)
        return answer["answer"]

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
        self._resident.child.process.kill()

    def close(self) -> None:
        """End the process and everything that it started."""
        self._resident.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # the usual case: nothing is left
            os.killpg(self.pid, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:  # nothing that it is still doing is wanted any more
            self.kill()
        self.close()

    def _status(self, field: str) -> int:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
        return 0
