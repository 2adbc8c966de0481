"""The process behind a row of ``lare2-rt bench``: loads one engine and runs it whenever it is told to.

Its peak memory is the engine's own.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ...bundle.opening import open_bundle
from ...engines.contract import EngineOptions, OpenEngine, UInt8
from ...engines.registry import engine_named
from ...engines.selection import load_engine
from ...engines.self_check import check_engine
from ...host.machine import peak_memory
from ...host.resident import Answers
from ...pixels.procedural import procedural_pictures


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one process measures; paths as text, None for defaults."""

    bundle: str
    engine: str
    threads: int
    batch: int | None
    cache: str | None
    image: str | None


def main(encoded: str) -> None:
    """Serve orders until standard input ends."""
    signal.signal(signal.SIGTERM, _leave)
    answers = Answers()
    with answers.errors():
        _serve(Assignment(**json.loads(encoded)), answers)


def _serve(task: Assignment, answers: Answers) -> None:
    bundle = open_bundle(task.bundle)
    engine = engine_named(task.engine)
    notices: list[str] = []

    def notify(line: str) -> None:
        notices.append(line)
        answers.tell(notice=line)

    cache = Path(task.cache) if task.cache is not None else None
    options = EngineOptions(threads=task.threads, batch=task.batch, cache=cache, notify=notify, build_anew=True)
    begin = time.perf_counter()
    running = load_engine(engine, bundle, options)
    load = time.perf_counter() - begin
    if notices:
        # Whoever prepares does not load as others do, nor with their memory: another process begins anew.
        answers.tell(prepared=True)
        running.close()
        return
    pixels = bundle.manifest.preprocess(task.image if task.image is not None else procedural_pictures()[-1])
    image, crop = (np.stack([part] * running.info.batch) for part in (pixels.image, pixels.crop))
    _milliseconds(running, image, crop)
    warm = _milliseconds(running, image, crop)
    answers.tell(ready=asdict(running.info), load_s=load, warm_ms=warm, peak=peak_memory())
    for (verb,) in answers.orders():
        if verb == "round":
            answers.tell(ms=_milliseconds(running, image, crop))
        elif verb == "check":
            answers.tell(check=asdict(check_engine(running, bundle)) if bundle.selfcheck is not None else None)
        else:
            answers.tell(peak=peak_memory())
    running.close()


def _milliseconds(running: OpenEngine, image: UInt8, crop: UInt8) -> float:
    begin = time.perf_counter()
    running.run(image, crop)
    return (time.perf_counter() - begin) * 1e3


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)  # on the way out a running compiler is ended too
