"""Measuring one row: the resident reference and the candidate take turns; speed and fidelity become one record."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.throughput.builds import environment_of
from benchmarks.throughput.memory import Watch, refusal
from benchmarks.throughput.process import FailedError, RefusedError, Resident
from benchmarks.throughput.rows import LAYOUTS, Row
from benchmarks.throughput.setup import Setup
from benchmarks.throughput.turns import Schedule, Turn, summary, take_turns
from lare2_rt.engines.difference import difference
from lare2_rt.host.machine import available_memory

Report = Callable[[str], None]
ImageArrays = Sequence[Mapping[str, NDArray[Any]]]

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
                self._process.ask("check", index % self._conditions.schedule.images)
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


class Opened(NamedTuple):
    """A process that has its technique loaded, and what loading took."""

    process: Resident
    loading: dict[str, Any]


def open_resident(row: Row, conditions: Conditions, *, name: str) -> Opened:
    """Start a worker and load a row's technique in it; raises RefusedError or FailedError."""
    setup = conditions.setup
    argument = conditions.layouts if row.argument == LAYOUTS else row.argument
    process = Resident(name, setup.logs(), environment_of(setup, row.environment))
    try:
        return Opened(process, process.ask("open", row.opener, row.imports, setup, argument))
    except BaseException:
        process.kill()
        process.close()
        raise


def check_memory(row: Row, reference: Reference, conditions: Conditions) -> None:
    """Raise RefusedError when the row and the reference cannot be resident together."""
    free = available_memory()
    reason = refusal(
        reference.row.memory.bytes(conditions.weights),
        row.memory.bytes(conditions.weights),
        limit=conditions.limit,
        # What the reference has taken already is not available any more, but it is part of the sum.
        available=conditions.limit if free is None else free + reference.resident_bytes(),
    )
    if reason is not None:
        raise RefusedError(reason)


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
                    f"both processes together passed the limit of {limit:.1f} GB; raise --memory or leave it out"
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
    checks = [candidate.ask("check", index) for index in range(schedule.images)]
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
    again = candidate.ask("check", 0)[1]
    return {
        "first_run_s": checks[0][0],
        **summary(rounds, schedule),
        "fidelity": fidelity,
        "same_bits_again": all(np.array_equal(again[name], checks[0][1][name]) for name in ("lare", "logits")),
    }


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
            "worst_relative_l2": _finite(max(d.relative_l2 for d in worst)),
            "max_abs": _finite(max(d.max_abs for d in worst)),
            "not_finite": sum(d.not_finite for d in worst),
        }
    margins = [abs(_margin(ours) - _margin(theirs)) for ours, theirs in zip(actual, truth, strict=True)]
    gap = float(np.max(margins))
    entries["logit"] = {
        "max_difference": _finite(gap),
        "over_standard_deviation": _finite(gap / spread) if spread else None,
        "standard_deviation": spread,
    }
    if all("probed_lare" in arrays for arrays in actual):
        probes = [difference(arrays["probed_lare"], arrays["lare"]).relative_l2 for arrays in actual]
        entries["noise_prediction"]["graph_differs_by"] = _finite(max(probes))
    return entries


def _margin(arrays: Mapping[str, NDArray[Any]]) -> float:
    logits = arrays["logits"]
    return float(logits[0, 1]) - float(logits[0, 0])


def _finite(value: float) -> float | None:
    """JSON has no infinity; the table shows a missing figure of a measured row as broken."""
    return float(value) if np.isfinite(value) else None
