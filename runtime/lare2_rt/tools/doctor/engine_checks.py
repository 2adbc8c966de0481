"""Each engine, by really opening it on the embedded bundle in a process of its own that may crash or hang."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from ...host.child import how_it_ended, run_child
from .finding import Finding


def check_engines(*, limit: float, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Yield one finding for each engine, and one more where none can be used."""
    from ...engines.registry import ENGINES

    usable = False
    for engine in ENGINES:
        progress(f"engine {engine.name}")
        finding = _check(engine.name, limit)
        usable = usable or finding.status == "ok"
        yield finding
    if not usable:
        yield Finding("engines", "any", "bad", "no engine can be used", "pip install onnxruntime")


def _check(name: str, limit: float) -> Finding:
    from ...engines.registry import entry_of

    again = f"{entry_of(name).install} --force-reinstall, or use another engine"
    # Compiled engines go into a folder that is thrown away: whether the cache works is another question.
    with tempfile.TemporaryDirectory() as cache:
        try:
            code, output, said = run_child(f"{__package__}.engine_child", name, cache, limit=limit)
        except subprocess.TimeoutExpired:
            text = f"was not open after {limit:g} seconds and was stopped"
            return Finding("engines", name, "bad", text, again)
        except OSError as error:
            return Finding("engines", name, "bad", f"no process for it can be started ({error})", "free some memory")
    answer = _parsed(output)
    if answer is not None:
        return _finding(name, answer)
    text = f"its process {how_it_ended(code)} while it was opened" + (f": {said}" if said else "")
    return Finding("engines", name, "bad", text, again)


def _parsed(output: str) -> dict[str, Any] | None:
    try:
        answer = json.loads(output)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _finding(name: str, answer: dict[str, Any]) -> Finding:
    if answer["state"] == "ok":
        seconds, milliseconds = answer["open_seconds"], answer["milliseconds"]
        text = f"{answer['version']} on {answer['device']}: opened in {seconds:.1f} s, {milliseconds:.0f} ms an image"
        facts = {key: answer[key] for key in ("version", "device", "open_seconds", "milliseconds", "lare_difference")}
        if not answer["passed"]:
            what, remedy = f"{text}, but {answer['verdict']}", "use another engine, or update this one"
            return Finding("engines", name, "bad", what, remedy, facts)
        return Finding("engines", name, "ok", text, facts=facts)
    # The embedded model has nothing for GPUs, and whether there should be a GPU is told elsewhere: nothing is broken.
    return Finding(
        "engines", name, "bad" if answer["state"] == "broken" else "note", answer["problem"], answer["remedy"]
    )
