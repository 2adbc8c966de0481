"""Measuring one row: the resident reference and the candidate take turns; speed and fidelity become one record."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.facts import finite
from benchmarks.common.kept import kept_arrays
from benchmarks.common.resident import FailedError, RefusedError, Resident
from benchmarks.throughput.rows import LAYOUTS, Row
from benchmarks.throughput.setup import Setup
from benchmarks.throughput.turns import Schedule, Turn, summary, take_turns
from lare2_rt.engines.difference import difference
from lare2_rt.host.machine import available_memory

Report = Callable[[str], None]
Arrays = Mapping[str, NDArray[Any]]
ImageArrays = Sequence[Arrays]

_COMPARED = ("latent", "noise_prediction", "lare", "embedding")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What all rows of a run share.

    Attributes:
        setup, schedule: what is measured and how.
        limit: bytes that both processes may take together; weights: bytes of the networks in float32.
        truth: the reference's arrays, image by image; spread: standard deviation of its logit over the images.
        layouts: JSON of the best layouts, for rows that ask for them.
    """

    setup: Setup
    schedule: Schedule
    limit: int
    weights: int
    truth: ImageArrays
    spread: float
    layouts: str


class Reference:
    """The resident reference: opened once, before the first row that is measured, and again if it should die."""

    def __init__(self, row: Row, conditions: Conditions, report: Report) -> None:
        self.row, self._conditions, self._report = row, conditions, report
        self._process: Resident | None = None

    def process(self) -> Resident:
        """Return the running process, warmed up; raises FailedError."""
        if self._process is None:
            self._report("opening the reference")
            self._process = open_resident(self.row, self._conditions, name="reference")[0]
            for index in range(2):  # the first allocates, the second already runs at speed
                self._process.ask("run", index % self._conditions.schedule.images)
        return self._process

    def resident_bytes(self) -> int:
        """Return what it takes at the moment; 0 when it does not run."""
        return 0 if self._process is None else self._process.resident_bytes()

    def drop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.close()
            self._process = None


def open_resident(row: Row, conditions: Conditions, *, name: str) -> tuple[Resident, dict[str, Any]]:
    """Start a worker with a row's technique; also returns what loading took. Raises RefusedError or FailedError."""
    setup = conditions.setup
    argument = conditions.layouts if row.argument == LAYOUTS else row.argument
    process = setup.start(name, row.environment)
    try:
        return process, process.ask("open", row.opener, row.imports, setup.facts(), argument)
    except BaseException:
        process.kill()
        process.close()
        raise


def check_memory(row: Row, reference: Reference, conditions: Conditions) -> None:
    """Raise RefusedError when the row and the reference cannot be resident together."""
    free = available_memory()
    lacking = refusal(
        reference.row.memory.bytes(conditions.weights),
        row.memory.bytes(conditions.weights),
        limit=conditions.limit,
        # What the reference has taken already is not available any more, but it is part of the sum.
        available=conditions.limit if free is None else free + reference.resident_bytes(),
    )
    if lacking is not None:
        problem, remedy = lacking
        raise RefusedError(problem, remedy=remedy)


def measure(row: Row, reference: Reference, conditions: Conditions, report: Report) -> dict[str, Any]:
    """Return the figures of one row; raises RefusedError when it cannot run here, FailedError when it broke."""
    check_memory(row, reference, conditions)
    resting = reference.process()
    report(f"{row.name}: loading")
    process, loading = open_resident(row, conditions, name=row.name)
    with process, Watch((resting, process), conditions.limit, process.kill) as watch:
        try:
            figures = _figures(row, resting, process, conditions, report)
        except FailedError:
            if watch.passed:
                limit = conditions.limit / 1e9
                raise FailedError(
                    f"both processes together passed the limit of {limit:.1f} GB",
                    remedy="raise --memory or leave it out",
                ) from None
            if reference.resident_bytes() == 0:
                reference.drop()  # it was the reference that died: the next row gets a new one
            raise
        memory = {
            "peak_bytes": process.peak_bytes(),
            "resident_bytes": process.resident_bytes(),
            "reference_resident_bytes": resting.resident_bytes(),
            "sum_peak_bytes": watch.peak,
        }
    if not row.reads_weights and conditions.setup.synthetic:
        loading["load_s"] = None  # the weights are drawn from a generator, which no user does
    return {**loading, **figures, "memory": memory}


def _figures(
    row: Row, reference: Resident, candidate: Resident, conditions: Conditions, report: Report
) -> dict[str, Any]:
    """Warm up on every image, which also gives the arrays to compare, then take turns."""
    schedule = conditions.schedule
    report(f"{row.name}: warming up on {schedule.images} images")
    checks = [_checked(row, candidate, conditions, index) for index in range(schedule.images)]
    fidelity = compare([arrays for _, arrays in checks], conditions.truth, conditions.spread)
    reference.ask("run", 0)  # it has rested for a while; its caches and pages are warm again after this

    def player(active: Resident, resting: Resident) -> Callable[[int], Turn]:
        def play(index: int) -> Turn:
            time.sleep(schedule.settle)
            before = resting.cpu_seconds()
            seconds, components = active.ask("run", index)
            return Turn(seconds, resting.cpu_seconds() - before, components)

        return play

    def progress(steady: int, played: int) -> None:
        report(f"{row.name}: {steady} of {schedule.rounds} rounds, {played - steady} strayed")

    rounds = take_turns(player(reference, candidate), player(candidate, reference), schedule, progress=progress)
    _, again = _checked(row, candidate, conditions, 0)
    return {
        "first_run_s": checks[0][0],
        **summary(rounds, schedule),
        "fidelity": fidelity,
        "same_bits_again": all(np.array_equal(again[name], checks[0][1][name]) for name in ("lare", "logits")),
    }


def _checked(row: Row, candidate: Resident, conditions: Conditions, index: int) -> tuple[float, Arrays]:
    """Return the seconds and the arrays of one image with the bundle's noise."""
    target = conditions.setup.folder(f"checked-{row.name}.npz")
    seconds: float = candidate.ask("check", index, str(target))
    try:
        return seconds, kept_arrays(target)
    finally:
        target.unlink()


def compare(actual: ImageArrays, truth: ImageArrays, spread: float) -> dict[str, Any]:
    """Return how far arrays are from the reference's.

    The worst image counts. ``logit`` is the logit for "generated" minus the one for "real"; its difference is also
    given in units of its own standard deviation over the images, because a tenth means nothing without it. A noise
    prediction from a graph with one more output says how far that graph's LaRE is from the row's own.
    """
    entries: dict[str, Any] = {}
    for name in _COMPARED:
        if not all(name in arrays for arrays in actual):
            entries[name] = None  # the row does not expose it
            continue
        worst = [difference(ours[name], theirs[name]) for ours, theirs in zip(actual, truth, strict=True)]
        entries[name] = {
            "worst_relative_l2": finite(max(d.relative_l2 for d in worst)),
            "max_abs": finite(max(d.max_abs for d in worst)),
            "not_finite": sum(d.not_finite for d in worst),
        }
    margins = [abs(_margin(ours) - _margin(theirs)) for ours, theirs in zip(actual, truth, strict=True)]
    gap = float(np.max(margins))
    entries["logit"] = {
        "max_difference": finite(gap),
        "over_standard_deviation": finite(gap / spread) if spread else None,
        "standard_deviation": spread,
    }
    if all("probed_lare" in arrays for arrays in actual):
        probes = [difference(arrays["probed_lare"], arrays["lare"]).relative_l2 for arrays in actual]
        entries["noise_prediction"]["graph_differs_by"] = finite(max(probes))
    return entries


def _margin(arrays: Arrays) -> float:
    logits = arrays["logits"]
    return float(logits[0, 1]) - float(logits[0, 0])


def refusal(reference: int, candidate: int, *, limit: int, available: int) -> tuple[str, str] | None:
    """Return why a row must not start, and the remedy; None if both processes fit.

    A machine that starts to swap measures its disk, and one without swap ends a process at random, perhaps not ours.

    Args:
        reference, candidate: estimated peaks in bytes.
        limit: what both may take together; available: what the system has left for both of them.
    """
    need = reference + candidate
    if need <= min(limit, available):
        return None
    bound, remedy = (limit, "raise --memory") if limit <= available else (available, "close other programs")
    what = "the limit" if limit <= available else "what is free"
    beside = f"{candidate / 1e9:.1f} GB beside the reference's {reference / 1e9:.1f} GB"
    problem = f"needs about {beside}, more than {what} of {bound / 1e9:.1f} GB"
    return problem, f"{remedy}, or measure on a larger machine"


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

    def __exit__(self, *error: object) -> None:
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
