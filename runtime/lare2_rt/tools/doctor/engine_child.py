"""The process in which ``lare2-rt doctor`` opens one engine; prints one JSON object."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...bundle.locate import embedded_bundle
from ...bundle.opening import open_bundle
from ...engines.contract import EngineOptions
from ...engines.registry import entry_of
from ...engines.selection import load_engine, why_not
from ...engines.self_check import check_engine
from ...errors import EngineError, Lare2Error
from ...host.machine import available_threads
from ...pixels.preprocess import preprocess
from ...pixels.procedural import procedural_pictures


def main(name: str, cache: str) -> None:
    """Open an engine on the embedded bundle, run it once, and hold it against the reference."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever libraries print
    try:
        answer = _examine(name, Path(cache))
    except Lare2Error as error:
        answer = _refused("broken", error)
    except MemoryError:
        answer = _refused("broken", EngineError("there is not enough memory for it", remedy="close other programs"))
    json.dump(answer, answers)
    answers.flush()
    os._exit(0)  # a library that crashes while it is unloaded was opened all the same


def _refused(state: str, error: Lare2Error) -> dict[str, Any]:
    return {"state": state, "problem": error.problem, "remedy": error.remedy or "report it"}


def _examine(name: str, cache: Path) -> dict[str, Any]:
    bundle = open_bundle(embedded_bundle())
    entry = entry_of(name)
    options = EngineOptions(threads=available_threads(), cache=cache)
    missing = entry.missing()
    if missing is not None:
        return _refused("absent", missing)
    engine = entry.load()
    reason = why_not(engine, bundle, options)
    if reason is not None:
        # An engine on a GPU needs other graphs as well: the embedded bundle has none.
        return _refused("unfit" if entry.device == "cuda" else "broken", reason)
    begin = time.perf_counter()
    running = load_engine(engine, bundle, options)
    seconds = time.perf_counter() - begin
    answer = {"state": "ok", "version": running.info.version, "device": running.info.device, "open_seconds": seconds}
    if bundle.selfcheck is not None:
        check = check_engine(running, bundle)
        figures = {"milliseconds": check.milliseconds, "lare_difference": check.lare}
        return {**answer, **figures, "passed": check.passed, "verdict": check.verdict}
    method = bundle.manifest.method
    pixels = preprocess(
        procedural_pictures()[0],
        bundle.manifest.policy,
        image_size=method.image_size,
        crop_size=method.crop_size,
    )
    image, crop = (np.stack([part] * running.info.batch) for part in (pixels.image, pixels.crop))
    begin = time.perf_counter()
    running.run(image, crop)
    milliseconds = (time.perf_counter() - begin) * 1e3
    return {**answer, "milliseconds": milliseconds, "lare_difference": None, "passed": True, "verdict": ""}


if __name__ == "__main__":
    main(*sys.argv[1:])
