"""One case of the GPU report in a process of its own, seen from both sides: opened, judged and timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common.facts import packages
from benchmarks.common.resident import FailedError, RefusedError, Resident
from benchmarks.common.worker import resolve
from benchmarks.gpu_report.cases import Case, expected_answers
from benchmarks.gpu_report.measure import Runner, measure_parity, measure_replay, measure_rows, measure_time
from lare2_rt.bundle.opening import Bundle, open_bundle
from lare2_rt.engines.contract import ChainOutput, EngineOptions, OpenEngine
from lare2_rt.engines.registry import engine_named
from lare2_rt.errors import EngineError, Lare2Error
from lare2_rt.host.machine import peak_memory
from lare2_rt.pixels.procedural import procedural_pictures


def in_process(case: Case, *, limit: float) -> dict[str, Any]:
    """Return what ``run`` gives in a process of its own; whatever ends it within ``limit`` seconds is the reason else.

    Nothing that the process starts outlives it: a builder that went on would take the GPU's time from the next case,
    and its memory.
    """
    begin = time.monotonic()
    try:
        with Resident("its process", None, {}) as process:
            found = process.ask("call", f"{__name__}:run_facts", (), (asdict(case),), limit=limit)
    except (RefusedError, FailedError) as error:
        late = time.monotonic() - begin >= limit
        reason = f"it was not done after {limit:g} s; raise --limit" if late else str(error)
        return {"status": "failed", "reason": reason}
    result: dict[str, Any] = found["result"]
    return result


def run_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Run the case of these fields."""
    return run(Case(**facts))


def run(case: Case) -> dict[str, Any]:
    """Return the figures of a case, or the reason why there are none."""
    try:
        if not case.opener:
            from benchmarks.gpu_report.polygraphy import second_opinion

            return second_opinion(open_bundle(case.bundle), case)
        return {**_measure(case), "packages": packages()}
    except RefusedError as error:
        return {"status": "not usable", "reason": str(error)}
    except Lare2Error as error:
        return _unmeasured(str(error))
    except MemoryError:
        return {"status": "failed", "reason": "there is not enough memory; close other programs"}
    except Exception as error:  # libraries of a GPU fail in many ways, and each is a finding of the report
        said = (str(error).splitlines() or [""])[0]
        return _unmeasured(f"{type(error).__name__}: {said[:300]}")


def _unmeasured(reason: str) -> dict[str, Any]:
    """A GPU that is too small for a batch proves nothing against anybody."""
    full = "out of memory" in reason.lower() or "cudaErrorMemoryAllocation" in reason
    return {"status": "not usable" if full else "failed", "reason": reason}


def _measure(case: Case) -> dict[str, Any]:
    bundle = open_bundle(case.bundle)
    pictures = [bundle.manifest.preprocess(picture) for picture in procedural_pictures()]
    expected, source = expected_answers(bundle, Path(case.reference) if case.reference is not None else None)
    begin = time.perf_counter()
    runner: Runner = resolve(case.opener)(bundle, case)
    opened = time.perf_counter() - begin
    try:
        batch = case.batch
        parity = measure_parity(
            runner, pictures, expected, batch=batch, precision=case.precision, rule=bundle.manifest.rule
        )
        replay = measure_replay(runner, pictures, expected, batch=batch)
        rows = measure_rows(runner, pictures, batch=batch)
        speed = measure_time(runner, pictures, batch=batch, seconds=case.seconds)
        return {
            "status": "measured",
            "passed": parity["passed"] and replay["passed"],
            "facts": runner.facts,
            "open_s": round(opened, 2),
            "compared_with": source,
            "parity": parity,
            "two_images": replay,
            "rows": rows,
            "speed": speed,
            "gpu_peak_bytes": runner.peak_memory(),
            "host_peak_bytes": peak_memory(),
        }
    finally:
        runner.close()


class EngineRunner:
    """An open engine as ``Runner``."""

    def __init__(self, opened: OpenEngine) -> None:
        self.opened = opened
        info = opened.info
        self.facts: dict[str, Any] = {"engine": info.name, "version": info.version, "build_key": info.build_key}

    def run(self, image: NDArray[np.uint8], crop: NDArray[np.uint8]) -> ChainOutput:
        """Score one batch, host copies included."""
        return self.opened.run(image, crop)

    def peak_memory(self) -> int | None:
        """Engines do not tell what they take of a GPU."""
        return None

    def close(self) -> None:
        """Release the engine."""
        self.opened.close()


def open_engine_row(bundle: Bundle, case: Case) -> EngineRunner:
    """Open an engine; raises RefusedError where it cannot be used here, EngineError where it breaks.

    Runs use batch 1 with an engine whose rows are not known to be equal. Here larger batches are opened all the same:
    whether rows are equal is one of the things to find out.
    """
    engine = engine_named(case.option)
    options = EngineOptions(
        threads=case.threads,
        precision=case.precision,
        batch=case.batch,
        cuda_graph=case.graph is not False,
        build_anew=True,
        notify=lambda line: print(line, file=sys.stderr, flush=True),
    )
    reason = engine.why_not(bundle, options)
    if reason is not None:
        raise RefusedError(reason.problem, remedy=reason.remedy)
    opened = engine.open(bundle, options)
    if opened.info.batch != case.batch:
        opened.close()
        raise EngineError(f"{engine.name} opened batch {opened.info.batch} instead of {case.batch}", remedy="report it")
    return EngineRunner(opened)
