"""The choice of an engine, with a reason for every one that is not taken, and its check before it is used."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..bundle.opening import Bundle
from ..errors import EngineError
from ..host.machine import cpu_facts
from ..pixels.procedural import procedural_pictures
from . import registry
from .contract import Engine, EngineOptions, OpenEngine
from .measurements import Record, Records, Speed
from .self_check import check_engine, reference_key

_SHORT_ROUNDS = 20


@dataclass(frozen=True, slots=True)
class Rejected:
    """An engine that was not taken, and why."""

    name: str
    reason: str


def select_engine(name: str, bundle: Bundle, options: EngineOptions) -> tuple[Engine, tuple[Rejected, ...]]:
    """Choose an engine for a bundle.

    A name is taken or refused, never replaced by another engine. ``auto`` takes the fastest by the records of this
    machine for this bundle, batch and number of threads. Where nobody measured the first engine that can be used, only
    a GPU is taken instead of it. Refused are

    - a batch on an engine whose rows differ by position: the same file would get other bits in other company;
    - an engine that failed its self-check here;
    - by ``auto``, an engine that compiles while the bundle has nothing to check it with.

    Raises:
        EngineError: no engine of that name, or none usable; the text gives every reason with its remedy.
    """
    return _select(name, bundle, options, refused={})


def open_engine(name: str, bundle: Bundle, options: EngineOptions) -> tuple[OpenEngine, tuple[Rejected, ...]]:
    """Choose an engine as ``select_engine`` does and load it.

    An engine that compiles is checked the first time against the reference's answers in the bundle. A named one that
    fails is refused; ``auto`` then takes the next.

    Raises:
        EngineError, BundleError, UsageError: with the remedy in the text.
    """
    refused: dict[str, EngineError] = {}
    while True:
        engine, rejected = _select(name, bundle, options, refused=refused)
        try:
            running = load_engine(engine, bundle, options)
            try:
                _check_once(engine, running, bundle, options)
            except BaseException:
                running.close()
                raise
        except EngineError as error:
            if name != "auto" or not engine.compiled:
                raise
            refused[engine.name] = error
            options.say(f"{engine.name} is not used: {error}")
        else:
            return running, rejected


def prepare_engine(name: str, bundle: Bundle, options: EngineOptions) -> Record | None:
    """Compile what an engine lacks, check it against the reference and, on a GPU, time it; return what was measured.

    Plans that lie in the cache for another version or GPU stay there beside the new ones. None where the engine
    compiles nothing, or the bundle has nothing to check it with.

    Raises:
        EngineError: it cannot be used, compiled or loaded, or it computes something else than the reference.
    """
    running, _ = open_engine(name, bundle, replace(options, build_anew=True))
    try:
        return Records(options.cache).read(running.info.build_key, reference_key(bundle))
    finally:
        running.close()


def load_engine(engine: Engine, bundle: Bundle, options: EngineOptions) -> OpenEngine:
    """Load an engine without any check of what it computes, for those who do that themselves. Raises as ``open``."""
    running = engine.open(bundle, settled(engine, options))
    if not engine.position_stable and running.info.batch != 1:
        running.close()
        raise EngineError(
            f"{engine.name} opened batch {running.info.batch} but may only run at batch 1", remedy="report it"
        )
    return running


def why_not(engine: Engine, bundle: Bundle, options: EngineOptions) -> EngineError | None:
    """Return why an engine cannot be loaded for the options; None if it can."""
    if not engine.position_stable and options.batch not in (None, 1):
        return EngineError(
            f"it gives an image other bits in other rows of a batch, so it runs at batch 1 only, not {options.batch}",
            remedy="leave --batch out, or choose another --engine",
        )
    return engine.why_not(bundle, settled(engine, options))


def settled(engine: Engine, options: EngineOptions) -> EngineOptions:
    """Return the options for an engine; batch 1 is no mere default of one that cannot take batches."""
    return options if engine.position_stable else replace(options, batch=1)


def _select(
    name: str, bundle: Bundle, options: EngineOptions, *, refused: Mapping[str, EngineError]
) -> tuple[Engine, tuple[Rejected, ...]]:
    usable: list[tuple[Engine, Record | None]] = []
    rejected: dict[str, EngineError] = {}
    for entry in registry.ENGINES if name == "auto" else (registry.entry_of(name),):
        reason = refused.get(entry.name) or entry.missing()
        if reason is None:
            engine = entry.load()
            reason, record = _examined(engine, bundle, options, name)
            if reason is None:
                usable.append((engine, record))
        if reason is not None:
            rejected[entry.name] = reason
    if usable:
        return _fastest(usable, [Rejected(entry, str(reason)) for entry, reason in rejected.items()])
    if name in rejected:
        raise EngineError(f"{name} cannot be used: {rejected[name].problem}", remedy=rejected[name].remedy)
    reasons = "; ".join(f"{entry}: {reason}" for entry, reason in rejected.items())
    raise EngineError(f"no usable engine: {reasons}", remedy="install one of them ('lare2-rt doctor' tells more)")


def _examined(
    engine: Engine, bundle: Bundle, options: EngineOptions, name: str
) -> tuple[EngineError | None, Record | None]:
    """Return why an engine cannot be used, and what was measured with it."""
    reason = why_not(engine, bundle, options)
    if reason is not None:
        return reason, None
    key = engine.describe(bundle, settled(engine, options)).build_key
    record = Records(options.cache).read(key, reference_key(bundle))
    return _failed(record) or (_unchecked(engine, bundle) if name == "auto" else None), record


def _fastest(
    usable: list[tuple[Engine, Record | None]], rejected: list[Rejected]
) -> tuple[Engine, tuple[Rejected, ...]]:
    """Take the engine with the lowest recorded time that counts; without any the first of all."""
    times = {engine.name: record.speed.p50 for engine, record in usable if record is not None and record.speed}
    first, _ = usable[0]
    if first.name not in times:
        # An engine that was measured alone is not faster for that, but a GPU is faster than what runs without records.
        times = {name: p50 for name, p50 in times.items() if registry.entry_of(name).device == "cuda"}
    if not times:
        names = [entry.name for entry in registry.ENGINES]
        return first, tuple(r for r in rejected if names.index(r.name) < names.index(first.name))
    best = min(times, key=lambda name: times[name])
    for engine, _ in usable:
        if engine.name not in times:
            rejected.append(Rejected(engine.name, "not measured here yet: run 'lare2-rt bench'"))
        elif engine.name != best:
            slower = f"slower here: {times[engine.name]:.0f} ms an image, {best} takes {times[best]:.0f}"
            rejected.append(Rejected(engine.name, slower))
    return next(engine for engine, _ in usable if engine.name == best), tuple(rejected)


def _failed(record: Record | None) -> EngineError | None:
    if record is None or record.check is None or record.check.passed:
        return None
    return EngineError(
        f"it failed its self-check on this machine: {record.check.verdict}",
        remedy="choose another engine, or update this one ('lare2-rt cache clear' lets it be checked again)",
    )


def _unchecked(engine: Engine, bundle: Bundle) -> EngineError | None:
    if not engine.compiled or bundle.selfcheck is not None:
        return None
    return EngineError(
        "the bundle has no answers of the reference to check it with",
        remedy="build the bundle again, or choose the engine by name with --engine",
    )


def _check_once(engine: Engine, running: OpenEngine, bundle: Bundle, options: EngineOptions) -> None:
    """Check a compiled engine unless these very files were checked on this machine; raises EngineError if it fails."""
    if not engine.compiled:
        return
    if bundle.selfcheck is None:
        options.say(
            f"{engine.name} cannot be checked: this bundle has no answers of the reference to hold it against; build "
            "the bundle again"
        )
        return
    info, records, reference = running.info, Records(options.cache), reference_key(bundle)
    record = records.read(info.build_key, reference)
    if record is not None and record.check is not None and record.compiled == info.compiled:
        return
    options.say(f"checking {engine.name} against the reference, once")
    check = check_engine(running, bundle)
    speed = record.speed if record is not None and record.compiled == info.compiled else None
    # Plans take minutes to build, so a GPU engine that is faithful is timed at once: ``auto`` goes by that.
    if speed is None and check.passed and info.device.startswith("cuda"):
        speed = _short_benchmark(running, bundle)
    record = Record(
        engine=info.name,
        build_key=info.build_key,
        machine=cpu_facts(),
        reference=reference,
        compiled=info.compiled,
        check=check,
        speed=speed,
    )
    records.write(record)
    reason = _failed(record)
    if reason is not None:
        raise EngineError(f"{engine.name} is refused: {reason.problem}", remedy=reason.remedy)


def _short_benchmark(running: OpenEngine, bundle: Bundle) -> Speed:
    """Time an engine that is warm on one picture; milliseconds per image."""
    pixels = bundle.manifest.preprocess(procedural_pictures()[-1])
    image, crop = (np.stack([part] * running.info.batch) for part in (pixels.image, pixels.crop))
    times = []
    for _ in range(_SHORT_ROUNDS):
        begin = time.perf_counter()
        running.run(image, crop)
        times.append((time.perf_counter() - begin) * 1e3 / running.info.batch)
    p50, p90, p99 = (float(np.percentile(times, percent)) for percent in (50, 90, 99))
    return Speed(p50, p90, p99, _SHORT_ROUNDS)
