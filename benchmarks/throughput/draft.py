"""The report in the making: finished rows survive a kill and are found again by what they were measured with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.throughput.rows import Row
from lare2_rt.host.atomic import write_bytes

SCHEMA = "lare2-rt/throughput/1"


class Draft:
    """Rows by name, each with the key of its configuration, and the sessions that they were measured in.

    A session is one start of the benchmark: its time, the machine's load, and the matrix products at both ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: dict[str, dict[str, Any]] = {}
        self._sessions: dict[str, dict[str, Any]] = {}
        try:
            stored = json.loads(path.read_bytes())
            if stored["schema"] == SCHEMA:
                self._rows, self._sessions = dict(stored["rows"]), dict(stored["sessions"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none yet, or of another version: nothing is lost but time

    def found(self, name: str, key: str) -> dict[str, Any] | None:
        """Return a finished row if it was measured with exactly this configuration."""
        entry = self._rows.get(name)
        if entry is None or entry["key"] != key:
            return None
        record: dict[str, Any] = entry["record"]
        return record

    def keep(self, name: str, key: str, record: Mapping[str, Any]) -> None:
        """Store a finished row."""
        self._rows[name] = {"key": key, "record": dict(record)}
        self._write()

    def session(self, name: str, content: Mapping[str, Any]) -> None:
        """Store what is known of a session so far."""
        self._sessions[name] = dict(content)
        self._write()

    def sessions(self, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return the sessions in which these rows were measured, oldest first."""
        used = {record["session"] for record in records if record.get("session")}
        return [self._sessions[name] for name in sorted(self._sessions) if name in used]

    def _write(self) -> None:
        used = {entry["record"].get("session") for entry in self._rows.values()}
        latest = max(self._sessions, default=None)
        self._sessions = {name: s for name, s in self._sessions.items() if name in used or name == latest}
        content = {"schema": SCHEMA, "rows": self._rows, "sessions": self._sessions}
        write_bytes(self._path, json.dumps(content).encode())


def described(row: Row, status: str, **content: object) -> dict[str, Any]:
    """Return the record of a row: ``measured``, ``not usable`` or ``failed``, the last two with a reason."""
    about = {"name": row.name, "kind": row.kind, "title": row.title, "stands_for": row.stands_for}
    return {**about, "status": status, **content}


def assemble(
    common: Mapping[str, Any], records: Sequence[dict[str, Any]], sessions: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the whole report; shares of the peak are taken here, where the best product of all sessions is known."""
    products = [value for session in sessions for probe in session["probes"].values() for value in probe.values()]
    peak = max(products, default=None)
    work = sum(common["flop"].values())
    for record in records:
        if record["status"] == "measured":
            seconds = record["latency_ms"]["p50"] / 1e3
            record["gflops"] = work / seconds / 1e9
            record["share_of_peak"] = record["gflops"] / peak if peak else None
    return {
        "schema": SCHEMA,
        **common,
        "peak_gflops": peak,
        "sessions": list(sessions),
        "rows": list(records),
    }
