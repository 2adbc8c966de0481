"""Each engine, by really opening it on the embedded bundle in a process of its own that may crash or hang."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .finding import Finding, split_remedy

_CODE = "import sys; sys.path.append(sys.argv[1]); from lare2_rt.doctor.engine_child import main; main(*sys.argv[2:])"
_ROOT = Path(__file__).parents[2]


def check_engines(*, limit: float, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Yield one finding for each engine, and one more where none can be used."""
    from ..engines import ENGINES

    usable = False
    for engine in ENGINES:
        progress(f"engine {engine.name}")
        finding = _check(engine.name, limit)
        usable = usable or finding.status == "ok"
        yield finding
    if not usable:
        yield Finding("engines", "any", "bad", "no engine can be used", "pip install 'lare2-rt[cpu]'")


def _check(name: str, limit: float) -> Finding:
    from ..engines import extra_of

    extra = f"'lare2-rt[{extra_of(name)}]'"
    # Compiled engines go into a folder that is thrown away: whether the cache works is another question.
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile() as complaints:
        command = [sys.executable, "-P", "-c", _CODE, str(_ROOT), name, cache]
        try:
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, check=False, timeout=limit
            )
        except subprocess.TimeoutExpired:
            text = f"was not open after {limit:g} seconds and was stopped"
            return Finding(
                "engines", name, "bad", text, f"pip install --force-reinstall {extra}, or use another engine"
            )
        except OSError as error:
            return Finding("engines", name, "bad", f"no process for it can be started ({error})", "free some memory")
        answer = _parsed(run.stdout)
        if answer is not None:
            return _finding(name, answer)
        complaints.seek(0)
        said = [line.strip() for line in complaints.read().decode(errors="replace").splitlines() if line.strip()]
    how = f"crashed ({signal.Signals(-run.returncode).name})" if run.returncode < 0 else f"ended ({run.returncode})"
    text = f"its process {how} while it was opened" + (f": {said[-1][:200]}" if said else "")
    return Finding("engines", name, "bad", text, f"pip install --force-reinstall {extra}, or use another engine")


def _parsed(output: bytes) -> dict[str, Any] | None:
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
    what, remedy = split_remedy(answer["reason"])
    # The embedded model has nothing for GPUs, and whether there should be a GPU is told elsewhere: nothing is broken.
    return Finding("engines", name, "bad" if answer["state"] == "broken" else "note", what, remedy)
