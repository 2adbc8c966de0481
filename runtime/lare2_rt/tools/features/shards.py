"""Shard files and the journal of a feature folder: arrays that grow row by row until they are complete."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ...errors import UsageError
from ...host.atomic import fsync_folder
from ...host.text import decode_name, encode_name
from .layout import Row

Float32 = NDArray[np.float32]
_ITEM = 4  # bytes of a float32
PARTIAL = ".partial"


def npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a C-ordered little-endian float32 array.

    NumPy leaves room for the first axis to grow, so its length does not depend on the number of rows.
    """
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": "<f4"})
    return stream.getvalue()


def npy_size(shape: tuple[int, ...]) -> int:
    """Return the size in bytes of a complete file with an array of this shape."""
    return len(npy_header(shape)) + _ITEM * math.prod(shape)


def checksum(arrays: Sequence[Float32]) -> int:
    """CRC-32 of the bytes of one row of each file: tells a row that was written from one that was not."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array, dtype="<f4").tobytes(), value)
    return value


class Draft:
    """A shard file in the making, ``NAME.partial``. What was written before a kill can be read and written again."""

    def __init__(self, path: Path, row_shape: tuple[int, ...]) -> None:
        self.path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._shape = row_shape
        self._row_bytes = _ITEM * math.prod(row_shape)
        self._header = len(npy_header((0, *row_shape)))
        self._stream: IO[bytes] | None = None

    def rows_there(self) -> int:
        """Number of whole rows that a draft on disk has room for; 0 where there is none."""
        try:
            size = self._partial.stat().st_size
        except OSError:
            return 0
        return max(0, size - self._header) // self._row_bytes

    def read(self, row: int) -> Float32:
        """Return one row of the draft, float32 of the row's shape; raises OSError or ValueError."""
        stream = self._open()
        stream.seek(self._header + row * self._row_bytes)
        return np.frombuffer(stream.read(self._row_bytes), "<f4").reshape(self._shape)

    def write(self, row: int, rows: Float32) -> None:
        """Write float32 [n, …] from ``row`` on and make it durable; raises OSError."""
        stream = self._open()
        stream.seek(self._header + row * self._row_bytes)
        stream.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())
        stream.flush()
        os.fsync(stream.fileno())

    def complete(self, count: int) -> None:
        """Give the file its header for ``count`` rows, cut off what lies behind, and its name; raises OSError."""
        stream = self._open()
        stream.seek(0)
        stream.write(npy_header((count, *self._shape)))
        stream.truncate(self._header + count * self._row_bytes)
        stream.flush()
        os.fsync(stream.fileno())
        self.close()
        self._partial.replace(self.path)
        fsync_folder(self.path.parent)

    def reopen(self) -> None:
        """Take a complete file back as a draft: of its shard, another file was not completed."""
        self.path.replace(self._partial)

    def close(self) -> None:
        """Close the file; the draft stays on disk."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None

    def _open(self) -> IO[bytes]:
        if self._stream is None:
            new = not self._partial.exists()
            self._stream = self._partial.open("w+b" if new else "r+b")
            if new:
                fsync_folder(self.path.parent)
        return self._stream


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
