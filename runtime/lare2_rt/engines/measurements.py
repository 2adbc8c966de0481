"""What was measured with an engine on this machine: its self-check and its speed. ``auto`` chooses by these records.

One small file per build key under ``<cache>/checks``. A record counts only on the machine that made it, for the
compiled files and the reference's answers that it was made with; anything else that lies there is as good as none.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from ..errors import OutputError
from ..host.atomic import reason, write_bytes
from ..host.integrity import cache_folder
from ..host.machine import cpu_facts
from .self_check import SelfCheck

_MAX_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Speed:
    """What ``lare2-rt bench`` measured: milliseconds per image, and the number of rounds behind them."""

    p50: float
    p90: float
    p99: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Record:
    """The measurements of one engine as it was opened.

    Attributes:
        engine: its name; build_key: see ``EngineInfo``.
        machine: ``cpu_facts`` of the machine.
        reference: ``reference_key`` of the bundle that the check compared with.
        compiled: digest of the compiled files that were checked; None where the engine compiles nothing.
        check, speed: None where not measured.
    """

    engine: str
    build_key: str
    machine: dict[str, str]
    reference: str
    compiled: str | None = None
    check: SelfCheck | None = None
    speed: Speed | None = None
    schema: Literal["lare2-rt/record/1"] = "lare2-rt/record/1"


class Records:
    """The records under a cache folder, by default that of ``LARE2_CACHE`` or the user."""

    def __init__(self, root: Path | None = None) -> None:
        self.folder = Path(os.path.abspath(root or cache_folder())) / "checks"

    def read(self, build_key: str, reference: str) -> Record | None:
        """Return the record of this machine for a build key; its check only where it compared with ``reference``."""
        record = self._parse(self.folder / f"{build_key}.json")
        if record is None or record.build_key != build_key or record.machine != cpu_facts():
            return None
        return record if record.reference == reference else replace(record, reference=reference, check=None)

    def write(self, record: Record) -> None:
        """Keep a record; where the cache cannot be written the measurement is made again next time."""
        with contextlib.suppress(OSError, OutputError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            content = json.dumps(asdict(record), indent=2, sort_keys=True) + "\n"
            write_bytes(self.folder / f"{record.build_key}.json", content.encode())

    def clear(self, engine: str | None = None) -> int:
        """Remove the records of an engine, or all; returns their number. Raises OutputError."""
        removed = 0
        for path in sorted(self.folder.glob("*.json")) if self.folder.is_dir() else ():
            record = self._parse(path)
            if engine is None or (record is not None and record.engine == engine):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise OutputError(
                        f"cannot remove {path}: {reason(error)}", remedy="check its access rights"
                    ) from error
                removed += 1
        return removed

    @staticmethod
    def _parse(path: Path) -> Record | None:
        with contextlib.suppress(OSError, ValidationError), path.open("rb") as handle:
            return _ADAPTER.validate_json(handle.read(_MAX_BYTES), strict=True)
        return None


_ADAPTER = TypeAdapter(Record)
