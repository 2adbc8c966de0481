"""One case of the GPU report, in a process of its own: opened, judged, timed, and written as JSON.

Arguments: the case as JSON, and the file for the result.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu_report.cases import Case, RefusedError
from benchmarks.gpu_report.measure import Runner, measure_parity, measure_replay, measure_rows, measure_time
from benchmarks.gpu_report.model import expected_answers
from benchmarks.throughput.setup import packages
from lare2_rt.bundle.opening import open_bundle
from lare2_rt.errors import Lare2Error
from lare2_rt.host.atomic import write_bytes
from lare2_rt.host.machine import peak_memory
from lare2_rt.pixels.preprocess import preprocess
from lare2_rt.pixels.procedural import procedural_pictures


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
    method, policy = bundle.manifest.method, bundle.manifest.policy
    pictures = [
        preprocess(picture, policy, image_size=method.image_size, crop_size=method.crop_size)
        for picture in procedural_pictures()
    ]
    expected, source = expected_answers(bundle, Path(case.reference) if case.reference is not None else None)
    module, _, function = case.opener.partition(":")
    begin = time.perf_counter()
    runner: Runner = getattr(importlib.import_module(module), function)(bundle, case)
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


if __name__ == "__main__":
    write_bytes(Path(sys.argv[2]), json.dumps(run(Case(**json.loads(sys.argv[1])))).encode())
