"""Two techniques taking turns on the same images, and the figures that come out of it.

Machines drift: clock rates, neighbours on the same host, memory pressure. Two runs of the same program an hour apart
differ by more than two programs in the same minute. So a candidate is never compared with a figure from another time,
only with the reference's time a moment before or after, on the same image, while the other process rests.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.common.facts import percentiles


@dataclass(frozen=True, slots=True)
class Turn:
    """One run: its wall time in seconds, the CPU seconds that the resting process used meanwhile, and the wall time of
    each component.
    """

    seconds: float
    idle_cpu: float
    components: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """Both techniques on one image, one right after the other."""

    image: int
    reference_first: bool
    reference: Turn
    candidate: Turn

    @property
    def ratio(self) -> float:
        """How many times faster the candidate was in this round."""
        return self.reference.seconds / self.candidate.seconds


@dataclass(frozen=True, slots=True)
class Schedule:
    """How rounds are played.

    Attributes:
        rounds: steady rounds that are wanted; images: how many there are, taken in turn.
        tolerance: a round has strayed when the reference's time is further than this share from its median.
        repeats: at most this many rounds are played again, so that a noisy machine cannot keep the benchmark for ever.
        settle: seconds of pause before each turn, longer than threads spin after their work. After a run of mini on two
            cores, the process's CPU clock still moved for 100 ms (at most 155) with onnxruntime, 20 ms with torch and
            7 ms with OpenVINO.
    """

    rounds: int
    images: int
    tolerance: float = 0.10
    repeats: int = 8
    settle: float = 0.3


Player = Callable[[int], Turn]


def take_turns(
    reference: Player, candidate: Player, schedule: Schedule, *, progress: Callable[[int, int], None]
) -> list[Round]:
    """Play rounds until enough are steady or the repeats are used up; returns every round, strayed ones included.

    Whoever starts a round changes from round to round: what one leaves in caches, clock rates or spinning threads then
    falls on both alike.
    """
    played: list[Round] = []
    while True:
        steady = len(played) - sum(strayed(played, schedule.tolerance))
        if steady >= schedule.rounds or len(played) >= schedule.rounds + schedule.repeats:
            return played
        progress(steady, len(played))
        played.append(_play(reference, candidate, _next_image(played, schedule), reference_first=len(played) % 2 == 0))


def _play(reference: Player, candidate: Player, image: int, *, reference_first: bool) -> Round:
    if reference_first:
        theirs = reference(image)
        return Round(image, True, theirs, candidate(image))
    ours = candidate(image)
    return Round(image, False, reference(image), ours)


def _next_image(played: Sequence[Round], schedule: Schedule) -> int:
    """The image with the fewest steady rounds: a round that strayed is played again on its own image."""
    counts = [0] * schedule.images
    for entry, stray in zip(played, strayed(played, schedule.tolerance), strict=True):
        counts[entry.image] += not stray
    return counts.index(min(counts))


def strayed(rounds: Sequence[Round], tolerance: float) -> list[bool]:
    """Return for each round whether something else disturbed it.

    Only the reference decides: it does the same work in every round, so its time tells about the machine, and a
    candidate cannot lose its slow rounds.
    """
    if not rounds:
        return []
    times = [entry.reference.seconds for entry in rounds]
    median = statistics.median_low(times)  # a time that was measured, so that at least one round is steady
    return [abs(seconds - median) > tolerance * median for seconds in times]


def steady_rounds(rounds: Sequence[Round], tolerance: float) -> list[Round]:
    """Return the rounds that count."""
    return [entry for entry, stray in zip(rounds, strayed(rounds, tolerance), strict=True) if not stray]


def summary(rounds: Sequence[Round], schedule: Schedule, *, batch: int = 1) -> dict[str, Any]:
    """Return the figures of one row and the raw times behind them.

    ``speedup`` is the median of the rounds' own ratios and not the ratio of two medians: each ratio was taken within
    one moment of the machine. ``idle_cpu_share`` is what the resting process used of one core: near 0, or the other's
    time is not its own.
    """
    steady = steady_rounds(rounds, schedule.tolerance)
    candidate = [entry.candidate.seconds for entry in steady]
    reference = [entry.reference.seconds for entry in steady]
    ratios = [entry.ratio for entry in steady]
    latency = percentiles(candidate)
    return {
        "latency_ms": latency,
        "reference_latency_ms": percentiles(reference),
        "images_per_second": batch * 1e3 / latency["p50"],
        "speedup": float(np.median(ratios)),
        "speedup_range": [min(ratios), max(ratios)],
        "components": _components(steady),
        "rounds": {
            "wanted": schedule.rounds,
            "steady": len(steady),
            "strayed": len(rounds) - len(steady),
            "tolerance": schedule.tolerance,
        },
        "idle_cpu_share": {
            "reference": sum(entry.candidate.idle_cpu for entry in rounds) / sum(r.candidate.seconds for r in rounds),
            "candidate": sum(entry.reference.idle_cpu for entry in rounds) / sum(r.reference.seconds for r in rounds),
        },
        "raw": [
            {**asdict(entry), "strayed": stray}
            for entry, stray in zip(rounds, strayed(rounds, schedule.tolerance), strict=True)
        ],
    }


def _components(steady: Sequence[Round]) -> dict[str, dict[str, float]]:
    """Return the median times of each component that both sides tell, and the median of the rounds' own ratios."""
    names = [name for name in steady[0].candidate.components if name in steady[0].reference.components]
    pairs = {name: [(r.reference.components[name], r.candidate.components[name]) for r in steady] for name in names}
    return {
        name: {
            "p50_ms": float(np.median([ours for _, ours in times])) * 1e3,
            "reference_p50_ms": float(np.median([theirs for theirs, _ in times])) * 1e3,
            "speedup": float(np.median([theirs / ours for theirs, ours in times])),
        }
        for name, times in pairs.items()
    }
