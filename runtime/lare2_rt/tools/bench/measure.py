"""Measuring the engines on this machine, for people and for ``auto``.

Every engine runs in a process of its own, so that its peak memory is its own. Machines drift, so the engines take turns
within every round wherever memory holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ...bundle.opening import Bundle
from ...engines import registry
from ...engines.contract import EngineInfo, EngineOptions, Notify
from ...engines.measurements import Record, Records, Speed
from ...engines.selection import why_not
from ...engines.self_check import SelfCheck, reference_key
from ...errors import EngineError
from ...host.machine import available_memory, cpu_facts
from .resident import ResidentEngine
from .worker import Assignment

Mode = Literal["in turns", "one after another"]
Progress = Callable[[int, int], None]
_SECONDS = 40.0  # of timed calls, all engines together, unless the number of rounds is given
_FEWEST, _MOST = 5, 200
# Before a further engine is loaded beside others there must be this many times the largest peak so far: of the engines'
# peaks on the UNet of SD 1.5 the largest is 1.7 times the smallest.
_ROOM = 2.0


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure; None means default.

    Attributes:
        threads: CPU threads; batch: images per call; rounds: timed calls of each engine.
        engines: names; default: all that can be used. image: the picture to run; default: a procedural one.
        cache: folder of compiled engines and records.
    """

    threads: int
    batch: int | None = None
    rounds: int | None = None
    engines: tuple[str, ...] | None = None
    image: Path | None = None
    cache: Path | None = None


@dataclass(slots=True)
class Row:
    """One engine.

    Attributes:
        problem: why there are no figures, with the remedy; None where there are.
        attempted: False where the engine cannot be used here, which is no failure.
        info: what was opened; load: seconds to load it, compiled as it is; peak: bytes of memory at most.
        latency: milliseconds of each timed call, in order.
        check: None where the bundle has nothing to check with.
    """

    name: str
    problem: str | None = None
    attempted: bool = True
    info: EngineInfo | None = None
    load: float = 0.0
    peak: int | None = None
    latency: list[float] = field(default_factory=list)
    check: SelfCheck | None = None

    @property
    def failed(self) -> bool:
        """Whether it should have worked and did not, or computes something else than the reference."""
        return self.attempted and (self.problem is not None or (self.check is not None and not self.check.passed))

    def percentile(self, percent: float) -> float:
        """Milliseconds within which ``percent`` of the calls ended."""
        return float(np.percentile(self.latency, percent))


def measure(bundle: Bundle, options: BenchOptions, *, notify: Notify, progress: Progress) -> tuple[list[Row], Mode]:
    """Measure engines, and keep the records that ``auto`` chooses by.

    Args:
        notify: called with one line before anything that takes long.
        progress: called with the number of rounds done and the number to do.

    Raises:
        EngineError: an engine that was named, or every engine, cannot be used.
    """
    rows = _rows(bundle, options)
    wanted = [row for row in rows if row.attempted]
    residents = _load_all(wanted, bundle, options, notify)
    mode: Mode = "one after another" if residents is None else "in turns"
    if residents:
        _play(residents, options, share=1.0, progress=progress)
    elif residents is None:
        notify("memory does not hold all engines at once, so they are measured one after another")
        for row in wanted:
            alone = _load(row, bundle, options, notify)
            if alone is not None:
                _play([(row, alone)], options, share=1 / len(wanted), progress=progress)
    for row in wanted:
        _remember(row, bundle, options)
    return rows, mode


def _rows(bundle: Bundle, options: BenchOptions) -> list[Row]:
    for name in options.engines or ():
        registry.entry_of(name)
    rows = []
    asked = EngineOptions(threads=options.threads, batch=options.batch, build_anew=True)
    for entry in registry.ENGINES:
        if options.engines is not None and entry.name not in options.engines:
            continue
        reason = entry.missing() or why_not(entry.load(), bundle, asked)
        if reason is not None and options.engines is not None:
            raise EngineError(f"{entry.name} cannot be used: {reason.problem}", remedy=reason.remedy)
        rows.append(Row(entry.name, problem=None if reason is None else str(reason), attempted=reason is None))
    if not any(row.attempted for row in rows):
        reasons = "; ".join(f"{row.name}: {row.problem}" for row in rows)
        raise EngineError(f"no usable engine: {reasons}", remedy="install one of them ('lare2-rt doctor' tells more)")
    return rows


def _load_all(
    rows: Sequence[Row], bundle: Bundle, options: BenchOptions, notify: Notify
) -> list[tuple[Row, ResidentEngine]] | None:
    """Load all engines beside each other; None, with none of them loaded any more, where memory does not hold them."""
    loaded: list[tuple[Row, ResidentEngine]] = []
    with ExitStack() as stack:
        for row in rows:
            if loaded and not _room(loaded):
                return None
            resident = _load(row, bundle, options, notify)
            if resident is not None:
                loaded.append((row, stack.enter_context(closing(resident))))
        stack.pop_all()
    return loaded


def _load(row: Row, bundle: Bundle, options: BenchOptions, notify: Notify) -> ResidentEngine | None:
    """Load one engine into a process of its own; None where it cannot be, with the reason in its row."""
    cache, image = (None if path is None else str(path) for path in (options.cache, options.image))
    task = Assignment(str(bundle.path), row.name, options.threads, options.batch, cache, image)
    notify(f"loading {row.name}")
    row.problem = None
    try:
        resident = ResidentEngine(task, notify)
    except EngineError as error:
        row.problem = str(error)
        return None
    row.info, row.load, row.peak = resident.info, resident.load, resident.peak
    return resident


def _room(loaded: Sequence[tuple[Row, ResidentEngine]]) -> bool:
    peaks = [resident.peak for _, resident in loaded if resident.peak is not None]
    free = available_memory()
    return free is not None and len(peaks) == len(loaded) and free >= _ROOM * max(peaks)


def _play(
    residents: Sequence[tuple[Row, ResidentEngine]], options: BenchOptions, *, share: float, progress: Progress
) -> None:
    """Time the engines in turns, check them, and end their processes; what fails is told in its row.

    Whoever starts a round changes from round to round: what one leaves in caches and clock rates falls on all alike.
    """
    try:
        rounds = options.rounds
        if rounds is None:
            one = sum(resident.warm for _, resident in residents) or 1.0
            rounds = min(max(int(_SECONDS * 1e3 * share / one), _FEWEST), _MOST)
        for number in range(rounds):
            first = number % len(residents)
            for row, resident in (*residents[first:], *residents[:first]):
                if row.problem is None:
                    with _told_in(row):
                        row.latency.append(resident.round())
            progress(number + 1, rounds)
        for row, resident in residents:
            if row.problem is None:
                with _told_in(row):
                    row.check, row.peak = resident.check(), resident.measure_peak()
    finally:
        for _, resident in residents:
            resident.close()


@contextmanager
def _told_in(row: Row) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        row.problem = str(error)


def _remember(row: Row, bundle: Bundle, options: BenchOptions) -> None:
    """Keep what was measured; an engine that broke down is forgotten, so that ``auto`` does not take it."""
    if row.info is None:
        return
    records = Records(options.cache)
    speed = None
    if row.problem is None:
        p50, p90, p99 = (row.percentile(percent) / row.info.batch for percent in (50, 90, 99))
        speed = Speed(p50, p90, p99, len(row.latency))
    records.write(
        Record(
            engine=row.name,
            build_key=row.info.build_key,
            machine=cpu_facts(),
            reference=reference_key(bundle),
            compiled=row.info.compiled,
            check=row.check,
            speed=speed,
        )
    )
