#!/usr/bin/env python3
"""What a start costs: a fresh process loads a bundle on onnxruntime and scores a photograph; JSON on standard output.

    python benchmarks/build_cost/start.py BUNDLE PHOTO

Nothing but the runtime is imported, so that time and memory are those of a user's process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

_REPEATS = 3


def start(bundle: Path, photo: Path) -> dict[str, Any]:
    """Load a bundle on onnxruntime and score a photograph; seconds, and the largest resident size in bytes.

    ``inference`` is the median of later verdicts on the same photograph.
    """
    begin = time.monotonic()
    from lare2_rt import Detector

    imported = time.monotonic()
    hashed = 0

    def progress(count: int) -> None:
        nonlocal hashed
        hashed += count

    with Detector.load(bundle, engine="onnxruntime", progress=progress, isolate=False) as detector:
        loaded = time.monotonic()
        detector.detect(photo)
        first = time.monotonic()
        times = []
        for _ in range(_REPEATS):
            again = time.monotonic()
            detector.detect(photo)
            times.append(time.monotonic() - again)
        version = detector.info.provenance.engine_version
    return {
        "import_s": imported - begin,
        "load_s": loaded - imported,
        "first_verdict_s": first - loaded,
        "inference_s": statistics.median(times),
        "bytes_checked": hashed,
        "memory_bytes": largest_resident_size(),
        "engine_version": version,
    }


def largest_resident_size() -> int:
    """Return the largest resident size of this process in bytes.

    Not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    lines = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
    (size,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(size) * 1024


if __name__ == "__main__":
    print(json.dumps(start(Path(sys.argv[1]), Path(sys.argv[2]))))
