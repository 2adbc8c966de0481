"""A case's own process, and everything that it starts: none of it outlives the case."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from benchmarks.gpu_report.cases import Case

_WORKER = Path(__file__).with_name("gpu_report_worker.py")


def in_process(case: Case, *, limit: float) -> dict[str, Any]:
    """Return what the case's own process writes; whatever ends it within ``limit`` seconds is the reason else."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+", errors="replace") as said:
        target = Path(folder) / "result.json"
        try:
            code = run_group([sys.executable, str(_WORKER), json.dumps(asdict(case)), str(target)], said, limit=limit)
        except subprocess.TimeoutExpired:
            return {"status": "failed", "reason": f"it was not done after {limit:g} s; raise --limit"}
        if target.is_file():
            result: dict[str, Any] = json.loads(target.read_bytes())
            return result
        said.seek(0)
        last = [line.strip() for line in said if line.strip()][-1:] or ["it said nothing"]
        return {"status": "failed", "reason": f"its process ended with {code}: {last[0][:300]}"}


def run_group(command: Sequence[str], said: IO[str], *, limit: float) -> int:
    """Run a command to its end and return its exit code; whatever it started and left behind is killed.

    A builder that went on would take the GPU's time from the next case, and its memory.

    Args:
        said: takes what it prints; limit: seconds.

    Raises:
        subprocess.TimeoutExpired: it was killed at the limit.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True
    )
    try:
        return child.wait(limit)
    finally:  # Ctrl-C does not reach a session of its own
        with contextlib.suppress(ProcessLookupError):  # the usual case: nothing is left
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
