"""What a start costs: a fresh process loads a bundle on onnxruntime and scores a photograph; JSON on standard output.

Nothing but the runtime is imported, so that time and memory are those of a user's process.
"""

from __future__ import annotations

import json
import statistics
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
    from lare2_rt.host.machine import peak_memory

    return {
        "import_s": imported - begin,
        "load_s": loaded - imported,
        "first_verdict_s": first - loaded,
        "inference_s": statistics.median(times),
        "bytes_checked": hashed,
        "memory_bytes": peak_memory(),
        "engine_version": version,
    }


def main(bundle: str, photo: str) -> None:
    """Print the figures of a start."""
    print(json.dumps(start(Path(bundle), Path(photo))))
