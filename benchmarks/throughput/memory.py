"""Memory of two resident processes: refused before the start when they cannot fit, watched while they run.

A machine that starts to swap measures its disk, and one without swap ends a process at random, perhaps not ours.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from benchmarks.throughput.process import Resident


@dataclass(frozen=True, slots=True)
class Footprint:
    """Largest resident memory of a technique: ``base`` bytes and ``factor`` times the weights.

    Estimates for the check before the start. They err upwards; what is reported is measured.
    """

    base: float
    factor: float

    def bytes(self, weights: int) -> int:
        """Return the estimate for float32 weights of this many bytes."""
        return int(self.base + self.factor * weights)


def refusal(reference: int, candidate: int, *, limit: int, available: int) -> str | None:
    """Return why a row must not start, with the remedy; None if both processes fit.

    Args:
        reference, candidate: estimated peaks in bytes.
        limit: what both may take together; available: what the system has left for both of them.
    """
    need = reference + candidate
    if need <= min(limit, available):
        return None
    bound, remedy = (limit, "raise --memory") if limit <= available else (available, "close other programs")
    what = "the limit" if limit <= available else "what is free"
    return (
        f"needs about {candidate / 1e9:.1f} GB beside the reference's {reference / 1e9:.1f} GB, more than {what} of "
        f"{bound / 1e9:.1f} GB; {remedy}, or measure on a larger machine"
    )


class Watch:
    """Samples the resident memory of two processes and calls ``exceeded`` once when their sum passes the limit."""

    def __init__(self, processes: tuple[Resident, Resident], limit: int, exceeded: Callable[[], None]) -> None:
        self._processes, self._limit, self._exceeded = processes, limit, exceeded
        self._ended = threading.Event()
        # Four readings of two small files a second: some 100 µs, not visible beside what is measured.
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak = 0
        self.passed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.is_set():
            total = sum(process.resident_bytes() for process in self._processes)
            self.peak = max(self.peak, total)
            if total > self._limit and not self.passed:
                self.passed = True
                self._exceeded()
            self._ended.wait(0.25)
