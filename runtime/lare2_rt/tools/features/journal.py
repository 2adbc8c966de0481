"""The journal of a run: one line per finished row, durable before the next batch is begun."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ...errors import UsageError
from ...host.text import decode_name, encode_name
from .layout import Row


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished row, the checksum of its arrays, and where its line ends in the journal."""

    row: Row
    checksum: int
    end: int


def read_journal(path: Path) -> list[Entry]:
    """Return the entries up to the first line that is not whole: a kill may cut the last one."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    entries: list[Entry] = []
    begin = 0
    while (end := content.find(b"\n", begin)) >= 0:
        try:
            fields = json.loads(content[begin:end])
            logits = (float(fields["logits"][0]), float(fields["logits"][1]))
            row = Row(
                str(fields["sha256"]),
                decode_name(str(fields["path"])),
                int(fields["shard"]),
                int(fields["row"]),
                logits,
                float(fields["probability"]),
            )
            entries.append(Entry(row, int(fields["checksum"]), end + 1))
        except (ValueError, KeyError, IndexError, TypeError, RecursionError, UsageError):
            break
        begin = end + 1
    return entries


class Journal:
    """The open journal; what is added is durable when ``add`` returns."""

    def __init__(self, path: Path, *, keep: int) -> None:
        """Open the journal and cut it to its first ``keep`` bytes; raises OSError."""
        self._path = path
        self._stream: IO[bytes] | None = path.open("r+b" if path.exists() else "w+b")
        self._stream.truncate(keep)
        self._stream.seek(keep)

    def add(self, rows: Sequence[tuple[Row, int]]) -> None:
        """Append rows with their checksums; raises OSError."""
        if self._stream is None:
            raise ValueError("the journal is closed")
        lines = [
            json.dumps(
                {
                    "sha256": row.sha256,
                    "path": encode_name(row.path),
                    "shard": row.shard,
                    "row": row.row,
                    "logits": row.logits,
                    "probability": row.probability,
                    "checksum": value,
                }
            )
            for row, value in rows
        ]
        self._stream.write("".join(f"{line}\n" for line in lines).encode())
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def close(self, *, remove: bool = False) -> None:
        """Close it; ``remove`` when all that it tells is in ``rows.parquet``."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None
        if remove:
            self._path.unlink(missing_ok=True)
