"""With which options a bundle's plans are built on this machine: chosen by a build, found again by whoever runs them.

The options are part of a plan's key, so a run has to know them to find the plan. They are kept beside the plans, one
small file for each engine and bundle; what cannot be read counts as the defaults, with which plans are then built.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ...bundle.opening import Bundle
from ...host.atomic import write_bytes
from ...host.integrity import cache_folder
from .plan import PlanOptions

_MAX_BYTES = 10_000
_ADAPTER = TypeAdapter(PlanOptions)


def plan_options_of(engine: str, bundle: Bundle, cache: Path | None = None) -> PlanOptions:
    """Return the options that the last build chose for a bundle, or the defaults."""
    with contextlib.suppress(OSError, ValidationError), _file(engine, bundle, cache).open("rb") as handle:
        return _ADAPTER.validate_json(handle.read(_MAX_BYTES))
    return PlanOptions()


def choose_plan_options(engine: str, bundle: Bundle, options: PlanOptions, cache: Path | None = None) -> None:
    """Keep options for a bundle; raises OSError or OutputError where the cache cannot be written."""
    path = _file(engine, bundle, cache)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(asdict(options), sort_keys=True) + "\n").encode())


def _file(engine: str, bundle: Bundle, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "plans" / f"{engine}-{bundle.manifest.id}.json"
