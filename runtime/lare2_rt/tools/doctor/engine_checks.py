"""Each engine, by really opening it on the embedded bundle in a process of its own that may crash or hang.

This file runs on both sides: ``main`` is the process.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...bundle.locate import embedded_bundle
from ...bundle.opening import open_bundle
from ...engines import registry
from ...engines.contract import EngineOptions
from ...engines.selection import load_engine, why_not
from ...engines.self_check import check_engine
from ...errors import EngineError, Lare2Error
from ...host.child import how_it_ended, run_child
from ...host.machine import available_threads
from ...host.resident import Answers
from .finding import Finding, Status


def check_engines(*, limit: float, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Yield one finding for each engine, and one more where none can be used."""
    usable = False
    for entry in registry.ENGINES:
        progress(f"engine {entry.name}")
        finding = _check(entry, limit)
        usable = usable or finding.status == "ok"
        yield finding
    if not usable:
        yield Finding("engines", "any", "bad", "no engine can be used", "pip install onnxruntime")


def _check(entry: registry.EngineEntry, limit: float) -> Finding:
    again = f"{entry.install} --force-reinstall, or use another engine"
    # Compiled engines go into a folder that is thrown away: whether the cache works is another question.
    with tempfile.TemporaryDirectory() as cache:
        try:
            code, output, said = run_child(__name__, entry.name, cache, limit=limit)
        except subprocess.TimeoutExpired:
            text = f"was not open after {limit:g} seconds and was stopped"
            return Finding("engines", entry.name, "bad", text, again)
        except OSError as error:
            text = f"no process for it can be started ({error})"
            return Finding("engines", entry.name, "bad", text, "free some memory")
    lines = output.splitlines()
    if code == 0 and lines:
        return _finding(entry.name, json.loads(lines[-1]))
    text = f"its process {how_it_ended(code)} while it was opened" + (f": {said}" if said else "")
    return Finding("engines", entry.name, "bad", text, again)


def _finding(name: str, answer: dict[str, Any]) -> Finding:
    if answer["state"] != "ok":
        # The embedded model has nothing for GPUs, and whether there should be a GPU is told elsewhere: no fault.
        status: Status = "bad" if answer["state"] == "broken" else "note"
        return Finding("engines", name, status, answer["problem"], answer["remedy"])
    seconds, milliseconds = answer["open_seconds"], answer["milliseconds"]
    text = f"{answer['version']} on {answer['device']}: opened in {seconds:.1f} s, {milliseconds:.0f} ms an image"
    facts = {key: answer[key] for key in ("version", "device", "open_seconds", "milliseconds", "lare_difference")}
    if answer["passed"]:
        return Finding("engines", name, "ok", text, facts=facts)
    what, remedy = f"{text}, but {answer['verdict']}", "use another engine, or update this one"
    return Finding("engines", name, "bad", what, remedy, facts)


def main(name: str, cache: str) -> None:
    """Open an engine on the embedded bundle, hold it against the reference, and answer with one line of JSON."""
    answers = Answers()
    try:
        answer = _examine(name, Path(cache))
    except Lare2Error as error:
        answer = _refused("broken", error)
    except MemoryError:
        answer = _refused("broken", EngineError("there is not enough memory for it", remedy="close other programs"))
    answers.tell(**answer)
    os._exit(0)  # a library that crashes while it is unloaded was opened all the same


def _refused(state: str, error: Lare2Error) -> dict[str, Any]:
    return {"state": state, "problem": error.problem, "remedy": error.remedy or "report it"}


def _examine(name: str, cache: Path) -> dict[str, Any]:
    bundle = open_bundle(embedded_bundle())
    entry = registry.entry_of(name)
    missing = entry.missing()
    if missing is not None:
        return _refused("absent", missing)
    engine = entry.load()
    options = EngineOptions(threads=available_threads(), cache=cache)
    reason = why_not(engine, bundle, options)
    if reason is not None:
        # An engine on a GPU needs other graphs as well: the embedded bundle has none.
        return _refused("unfit" if entry.device == "cuda" else "broken", reason)
    begin = time.perf_counter()
    running = load_engine(engine, bundle, options)
    seconds = time.perf_counter() - begin
    check = check_engine(running, bundle)
    return {
        "state": "ok",
        "version": running.info.version,
        "device": running.info.device,
        "open_seconds": seconds,
        "milliseconds": check.milliseconds,
        "lare_difference": check.lare,
        "passed": check.passed,
        "verdict": check.verdict,
    }
