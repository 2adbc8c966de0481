"""The process behind a row: loads one technique, then runs it once whenever it is told to."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import worker
from benchmarks.common.kept import keep_arrays
from benchmarks.throughput.runner import Runner
from benchmarks.throughput.setup import Setup

if TYPE_CHECKING:
    from lare2_rt.pixels.preprocess import Pixels


class Worker(worker.Worker):
    """Adds to ``call`` what is done with a setup."""

    def __init__(self) -> None:
        self._runner: Runner | None = None
        self._pictures: list[Pixels] = []

    def build(
        self, function: str, imports: Sequence[str], setup: Mapping[str, Any], arguments: Sequence[Any]
    ) -> dict[str, Any]:
        """Call ``function(setup, *arguments)``."""
        return self.call(function, imports, (Setup.of(setup), *arguments))

    def open(
        self, opener: str, imports: Sequence[str], setup: Mapping[str, Any], argument: str | None
    ) -> dict[str, Any]:
        """Load a technique; the libraries' own start is timed apart from the loading of weights and graphs."""
        begin = time.perf_counter()
        worker.import_all(imports)
        function = worker.resolve(opener)
        imported = time.perf_counter()
        self._runner = function(Setup.of(setup), argument)
        loaded = time.perf_counter()
        self._pictures = Setup.of(setup).pictures()
        return {"import_s": imported - begin, "load_s": loaded - imported, "settings": self._opened().facts}

    def check(self, index: int, target: str) -> float:
        """Run one image with the bundle's noise; writes the arrays into a file and returns seconds."""
        begin = time.perf_counter()
        arrays = self._opened().check(self._pictures[index])
        seconds = time.perf_counter() - begin
        keep_arrays(Path(target), arrays)
        return seconds

    def run(self, index: int) -> tuple[float, dict[str, float]]:
        """Run one image; returns its seconds, with nothing else inside the clock, and those of each component."""
        runner, picture = self._opened(), self._pictures[index]
        begin = time.perf_counter()
        runner.run(picture)
        return time.perf_counter() - begin, runner.laps.seconds

    def _opened(self) -> Runner:
        assert self._runner is not None
        return self._runner
