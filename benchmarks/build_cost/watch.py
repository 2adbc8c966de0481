"""What a command and all processes that it starts take of memory, and what a folder takes of the disk meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL = 0.1  # seconds
_SESSION = 3  # place in /proc/PID/stat after the name


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took.

    Attributes:
        seconds: from its start to its end; code: exit code; log: its standard error.
        memory_bytes: largest resident size of any one of its processes, as the kernel keeps it.
        together_bytes: largest sum of what its processes held at once; pages that they share count more than once.
        disk_bytes: largest size of all files below the folder, less what was there before.
    """

    seconds: float
    code: int
    log: str
    memory_bytes: int
    together_bytes: int
    disk_bytes: int


def watch(command: Sequence[str], folder: Path, *, environment: Mapping[str, str]) -> Cost:
    """Run a command in a session of its own, its lines shown on standard error, and say what it took. Linux only."""
    before, peaks = disk_size(folder), [0, 0, 0]
    ended = threading.Event()
    begin = time.monotonic()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=dict(environment)
    )

    def sample() -> None:
        while not ended.wait(_INTERVAL):
            own, together = memory(process.pid)
            for index, value in enumerate((own, together, disk_size(folder) - before)):
                peaks[index] = max(peaks[index], value)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    lines = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            sys.stderr.write(line)
        code = process.wait()
    finally:
        ended.set()
        sampler.join()
        process.kill()
    return Cost(time.monotonic() - begin, code, "".join(lines), *peaks)


def memory(session: int) -> tuple[int, int]:
    """Return the largest peak of any process of a session, and what all of them hold now, in bytes."""
    peak = together = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[_SESSION]) != session:
                continue
            status = dict(line.split(":", 1) for line in stat.with_name("status").read_text().splitlines())
        except (OSError, ValueError):  # it has just ended
            continue
        peak = max(peak, _kilobytes(status.get("VmHWM")))
        together += _kilobytes(status.get("VmRSS"))
    return peak, together


def _kilobytes(field: str | None) -> int:
    return int(field.split()[0]) * 1024 if field else 0


def disk_size(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes; files that go meanwhile count as gone."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue
        total += 0 if path.is_dir() else status.st_size
    return total
