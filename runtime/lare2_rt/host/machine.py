"""What this machine is: facts that decide whether a compiled engine or a measurement made here still holds."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
from pathlib import Path

from ..errors import UsageError

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def cpu_facts() -> dict[str, str]:
    """Return architecture, processor name and a digest of its instruction sets; equal on interchangeable machines."""
    name, flags = platform.processor(), ""
    with contextlib.suppress(OSError):
        for line in (_PROC / "cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = (part.strip() for part in line.partition(":"))
            if key == "model name":
                name = value
            if key in ("flags", "Features"):  # x86, Arm
                flags = " ".join(sorted(value.split()))
            if name and flags:
                break
    return {
        "architecture": platform.machine(),
        "cpu": name or "unknown",
        "features": hashlib.sha256(flags.encode()).hexdigest()[:16],
    }


def available_memory() -> int | None:
    """Return how many bytes new work may take: what the system has left, and what the container's limit leaves.

    None where neither can be told.
    """
    limits = [value for value in (_system_memory(), _container_memory()) if value is not None]
    return min(limits) if limits else None


def peak_memory() -> int | None:
    """Return the largest resident size that this process has had, in bytes; None where that cannot be told.

    Read from ``/proc``: what ``getrusage`` gives includes the parent's size at the time of the fork.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / "self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def processors() -> int:
    """Return how many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def available_threads() -> int:
    """Return the number of CPU threads (>= 1) allowed by the affinity mask and by the cgroup v2 or v1 quota."""
    quota = _cgroup_quota(_CGROUP)
    return max(1, processors() if quota is None else min(processors(), quota))


def thread_count(asked: int | None) -> int:
    """Return the CPU threads to use: as asked, None for all that are available; raises UsageError below 1."""
    if asked is not None and asked < 1:
        raise UsageError(f"threads must be at least 1, not {asked}", remedy="leave it out for all that are allowed")
    return asked or available_threads()


def _system_memory() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _container_memory() -> int | None:
    """What cgroup v2 leaves; page cache counts as used there, though it would be given back."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = int((_CGROUP / "memory.current").read_text())
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                used -= int(value)
        return max(0, limit - used)
    return None


def _cgroup_quota(root: Path) -> int | None:
    """Return the quota in whole threads, rounded up, or None where there is none."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text()
            period = (root / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    try:
        microseconds, of = int(limit), int(period)
    except ValueError:  # "max": no limit
        return None
    return math.ceil(microseconds / of) if microseconds > 0 and of > 0 else None
