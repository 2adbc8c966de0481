"""The process behind a row: loads one technique, then runs it once whenever it is told to, and sleeps in between.

    python benchmarks/throughput/worker.py DESCRIPTOR PARENT

Started by ``throughput_process.Resident``, whose process id is PARENT; messages are tuples over the pipe DESCRIPTOR.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.throughput.laps import Laps
from benchmarks.throughput.setup import Arrays, Setup
from lare2_rt.errors import Lare2Error, first_line

if TYPE_CHECKING:
    from lare2_rt.pixels.preprocess import Pixels

_PR_SET_PDEATHSIG = 1


class Runner(Protocol):
    """One technique, loaded."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Settings that were really used, for the report."""

    @property
    def laps(self) -> Laps:
        """What each component of the last run took."""

    def run(self, picture: Pixels) -> Arrays:
        """From uint8 pixels in memory to arrays in memory: ``lare`` [1,4,h,w], ``logits`` [1,2], and more if it has."""

    def check(self, picture: Pixels) -> Arrays:
        """The same with the bundle's noise, whatever noise ``run`` takes."""


class Worker:
    """The messages, one method each."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._pictures: list[Pixels] = []

    def call(self, function: str, imports: Sequence[str], arguments: tuple[object, ...]) -> dict[str, Any]:
        """Do one piece of work, such as a build; returns its result and the seconds, imports included."""
        begin = time.perf_counter()
        _import(imports)
        result = resolve(function)(*arguments)
        return {"result": result, "seconds": time.perf_counter() - begin}

    def open(self, opener: str, imports: Sequence[str], setup: Setup, argument: str | None) -> dict[str, Any]:
        """Load a technique; the libraries' own start is timed apart from the loading of weights and graphs."""
        begin = time.perf_counter()
        _import(imports)
        function = resolve(opener)
        imported = time.perf_counter()
        self._runner = function(setup, argument)
        loaded = time.perf_counter()
        assert self._runner is not None
        self._pictures = setup.pictures()
        return {
            "import_s": imported - begin,
            "load_s": loaded - imported,
            "settings": dict(self._runner.facts),
        }

    def check(self, index: int) -> tuple[float, dict[str, Any]]:
        """Run one image with the bundle's noise; returns seconds and the arrays."""
        assert self._runner is not None
        begin = time.perf_counter()
        arrays = self._runner.check(self._pictures[index])
        return time.perf_counter() - begin, dict(arrays)

    def run(self, index: int) -> tuple[float, dict[str, float]]:
        """Run one image; returns its seconds, with nothing else inside the clock, and those of each component."""
        assert self._runner is not None
        picture = self._pictures[index]
        begin = time.perf_counter()
        self._runner.run(picture)
        return time.perf_counter() - begin, dict(self._runner.laps.seconds)


def resolve(name: str) -> Callable[..., Any]:
    """Return ``module:function``."""
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _import(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise Lare2Error(f"{error.name} is not installed", remedy="see the extras in pyproject.toml") from error


def serve(pipe: Connection[Any, Any]) -> None:
    """Answer messages until the parent closes the pipe."""
    worker = Worker()
    while True:
        try:
            verb, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("ok", getattr(worker, verb)(*arguments))
        except Lare2Error as error:
            answer = ("refused", str(error))
        except Exception as error:  # a peer may raise anything; the parent needs one line, the log has the trace
            traceback.print_exc()
            answer = ("failed", f"{type(error).__name__}: {first_line(error)}")
        pipe.send(answer)


if __name__ == "__main__":
    # An orphan in the middle of a minute-long run would disturb whatever is measured next.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):  # the parent was gone before that call
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends us
    serve(Connection(int(sys.argv[1])))
