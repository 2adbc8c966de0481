"""How many threads this process may really use: CPU affinity and the container's quota, not the host's core count."""

from __future__ import annotations

import math
import os
from pathlib import Path


def available_threads() -> int:
    """Return the number of CPU threads (>= 1) allowed by the affinity mask and by the cgroup v2 or v1 quota."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, affinity if quota is None else min(affinity, quota))


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
