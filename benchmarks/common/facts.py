"""What a figure belongs to: the machine, the packages and the code that it was measured with."""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lare2_rt.engines.registry import ENGINES, EngineEntry, installed_version
from lare2_rt.host.machine import cpu_facts

_EXPORT = ("numpy", "torch", "diffusers", "transformers", "open_clip_torch", "onnx", "onnx-ir", "onnxscript")
_GPU = ("cuda-bindings", "polygraphy", "triton")


def engines_on(device: str) -> tuple[EngineEntry, ...]:
    """Return the engines that compute on ``cpu`` or ``cuda``, in the registry's order."""
    return tuple(entry for entry in ENGINES if entry.device == device)


def libraries_of(engines: Iterable[EngineEntry]) -> tuple[str, ...]:
    """Return every distribution that engines compute with, alternatives included, each once."""
    names = (name for entry in engines for library in entry.libraries for name in library.split("|"))
    return tuple(dict.fromkeys(names))


# Everything whose version can move a figure.
PACKAGES = (*_EXPORT, *libraries_of(engines_on("cpu")))
GPU_PACKAGES = tuple(dict.fromkeys((*PACKAGES, *libraries_of(engines_on("cuda")), *_GPU)))


def packages(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of those that are installed."""
    found = {name: installed_version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def machine_facts(threads: int) -> dict[str, Any]:
    """Return what the machine is, for a report."""
    return {
        **cpu_facts(),
        "threads": threads,
        "memory_gb": memory_gb(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def memory_gb() -> float:
    """Return the machine's memory in GB."""
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def now() -> dict[str, Any]:
    """Return the time and the machine's load: above the number of threads, somebody else was at work."""
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def code_digest(*names: str) -> str:
    """Return sha256 over the Python code of packages and modules.

    A figure belongs to the code that it was measured with: when that changes, its row is measured again.

    Raises:
        ModuleNotFoundError: there is none of that name.
    """
    digest = hashlib.sha256()
    for name in sorted(set(names)):
        spec = importlib.util.find_spec(name)  # imports nothing but the package around it
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name)
        origin = Path(spec.origin)
        package = origin.name == "__init__.py"
        for path in sorted(origin.parent.rglob("*.py")) if package else [origin]:
            digest.update(str(path.relative_to(origin.parent)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return p50, p90 and p99 in milliseconds, interpolated linearly between the measured times."""
    values = np.percentile(np.asarray(seconds, np.float64) * 1e3, (50, 90, 99))
    return {name: float(value) for name, value in zip(("p50", "p90", "p99"), values, strict=True)}


def finite(value: float) -> float | None:
    """Return a number for JSON, which has no infinity; tables show None of a measured row as broken."""
    return float(value) if np.isfinite(value) else None
