"""What is measured of one file, and a cache of it: a large set is read and decoded once, not at each call."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import __version__ as pillow_version

from ...errors import ImageError, PassingImageError, no_memory
from ...host.integrity import cache_folder, sha256_of
from ...host.machine import available_threads
from ...host.text import printable
from ...pixels.ahead import Cancellation
from ...pixels.picture import Properties, read_properties
from ...pixels.policy import Preprocessing
from ...pixels.pool import IsolatedDecoder
from ...pixels.preprocess import DecodeTask

_VERSION = 1  # of what is measured; raised when the same file would give other facts
_MAX_ROWS = 4_000_000  # about 600 MB: GenImage has 2.7 million images
_COMMIT_EVERY = 256
# A file touched this recently could change again without any of its times showing it (see integrity.HashCache).
_SETTLED = 2.0
OnProgress = Callable[[int, int], None]  # called with the number of images done and of all
UNKNOWN_QUALITY = -1
# Annex K of the JPEG standard (ITU-T T.81), table K.1: what libjpeg scales for luminance. Natural order.
_LUMINANCE = np.array(
    (
        (16, 11, 10, 16, 24, 40, 51, 61),
        (12, 12, 14, 19, 26, 58, 60, 55),
        (14, 13, 16, 24, 40, 57, 69, 56),
        (14, 17, 22, 29, 51, 87, 80, 62),
        (18, 22, 37, 56, 68, 109, 103, 77),
        (24, 35, 55, 64, 81, 104, 113, 92),
        (49, 64, 78, 87, 103, 121, 120, 101),
        (72, 92, 95, 98, 112, 100, 103, 99),
    ),
    dtype=np.int64,
).ravel()
_QUALITIES = np.arange(1, 101)[:, None]
_SCALES = np.where(_QUALITIES < 50, 5000 // _QUALITIES, 200 - 2 * _QUALITIES)
# The luminance tables of libjpeg's qualities 1..100 (its jpeg_set_quality, baseline), float64 [100,64].
_LOG_TABLES = np.log(np.clip((_LUMINANCE * _SCALES + 50) // 100, 1, 255))


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file is, as in the columns of the index; see ``table.IndexRow``."""

    width: int
    height: int
    format: str
    jpeg_quality: int
    bytes: int
    sha256: str
    error: str


_Waiting = tuple[str, bytes | None, Facts | Future[tuple[Facts, bool]]]  # path, key in the cache, what is known


def measure(path: str) -> Facts:
    """Read, hash and decode one file completely, in this process; ``error`` says what is wrong with it."""
    return _measured(path, read_properties)[0]


def _measured(path: str, read: Callable[[str], Properties]) -> tuple[Facts, bool]:
    """Return the facts, and whether they last, which an error need not do. Raises EngineError as ``read``."""
    lasting = True
    try:
        found = read(path)
        quality = estimate_quality(found.luminance)
        return Facts(found.width, found.height, found.format, quality, *_content(path), ""), lasting
    except ImageError as error:
        words, lasting = printable(str(error)), not isinstance(error, PassingImageError)
    except MemoryError:
        words, lasting = str(no_memory()), False
    except OSError:
        words = "it was removed while it was read; index again"
    size, digest = 0, ""
    with contextlib.suppress(OSError):
        size, digest = _content(path)
    return Facts(0, 0, "", UNKNOWN_QUALITY, size, digest, words), lasting


def estimate_quality(table: Sequence[int] | None) -> int:
    """Return the libjpeg quality, 1..100, whose luminance table is nearest to that of an image; -1 for None.

    Exact for what libjpeg, libjpeg-turbo and Pillow wrote with a quality; for encoders with tables of their own
    (cameras, Photoshop) the setting of about the same coarseness. Nearest is by the mean absolute ratio, as coarse
    steps at high frequencies would outvote all others in a difference.
    """
    if table is None or len(table) != 64 or min(table) < 1:
        return UNKNOWN_QUALITY
    distance = np.abs(_LOG_TABLES - np.log(np.asarray(table, dtype=np.float64))).mean(axis=1)
    return int(distance.argmin()) + 1


def _content(path: str) -> tuple[int, str]:
    """Size and hash; a pipe or device has none."""
    file = Path(path)
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return 0, ""
    return status.st_size, sha256_of(file)


def measure_all(
    paths: Sequence[str], *, threads: int | None = None, cache: Path | None = None, progress: OnProgress | None = None
) -> list[Facts]:
    """Measure files in processes, of which a bad file ends one at most; facts come in the order of ``paths``.

    Args:
        paths: native paths; cache: folder of the cache; default: the user's.
        threads: files at a time; default: what affinity and container quota allow.
        progress: called before the first file and after each.

    Raises:
        EngineError: no process for decoding can be started.
    """
    facts: list[Facts] = []
    show = progress or (lambda done, of: None)
    show(0, len(paths))
    with contextlib.closing(FactsCache(cache)) as known:
        for fact in _in_order(paths, known, threads or available_threads()):
            facts.append(fact)
            show(len(facts), len(paths))
    return facts


def _in_order(paths: Sequence[str], known: FactsCache, threads: int) -> Iterator[Facts]:
    waiting: deque[_Waiting] = deque()
    cancellation = Cancellation()
    processes = min(threads, 1 + len(paths) // 16)  # one takes as long to start as a few files to decode
    with (
        contextlib.closing(IsolatedDecoder(DecodeTask(Preprocessing()), processes=processes)) as decoder,
        ThreadPoolExecutor(threads, thread_name_prefix="lare2-index") as pool,
    ):
        read = partial(decoder.properties, cancellation=cancellation)
        try:
            for path in paths:
                key = known.key(path)
                fact = known.get(key)
                waiting.append((path, key, pool.submit(_measured, path, read) if fact is None else fact))
                if len(waiting) > 4 * threads:
                    yield _settle(waiting.popleft(), known)
            while waiting:
                yield _settle(waiting.popleft(), known)
        finally:
            for _, _, item in waiting:
                if isinstance(item, Future):
                    item.cancel()
            cancellation.cancel()


def _settle(item: _Waiting, known: FactsCache) -> Facts:
    path, key, fact = item
    if isinstance(fact, Facts):
        return fact
    measured, lasting = fact.result()
    if lasting:
        known.put(path, key, measured)
    return measured


class FactsCache:
    """Remembers facts by (real path, size, mtime, ctime, inode). An unwritable or damaged cache is simply not used."""

    def __init__(self, folder: Path | None = None) -> None:
        self._pending = 0
        self._rows: sqlite3.Connection | None = None
        # A newer decoder may read what an older one could not.
        self._salt = f"{_VERSION}\0{pillow_version}"
        file = (folder or cache_folder()) / "facts.sqlite"
        with contextlib.suppress(OSError, sqlite3.Error):
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            rows = sqlite3.connect(file, timeout=1)
            rows.execute("CREATE TABLE IF NOT EXISTS facts (key BLOB UNIQUE, value TEXT NOT NULL)")
            rows.execute("SELECT key, value FROM facts LIMIT 1").fetchall()
            self._rows = rows

    def key(self, path: str) -> bytes | None:
        """Return what identifies a file and its content; None for one that cannot be looked at."""
        try:
            real = Path(path).resolve()
            status = real.stat()
        except (OSError, ValueError, RuntimeError):  # the last: links in a circle
            return None
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return hashlib.sha256(b"\0".join([self._salt.encode(), os.fsencode(real), repr(facts).encode()])).digest()

    def get(self, key: bytes | None) -> Facts | None:
        """Return what is remembered, or None."""
        if self._rows is None or key is None:
            return None
        try:
            found = self._rows.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
            return None if found is None else _facts(json.loads(found[0]))
        except (sqlite3.Error, ValueError, TypeError, RecursionError):
            return None

    def put(self, path: str, key: bytes | None, facts: Facts) -> None:
        """Remember facts, if the file stood still while they were taken and for long enough before."""
        if self._rows is None or key is None or not facts.sha256:
            return
        try:
            if self.key(path) != key or time.time() - Path(path).stat().st_ctime <= _SETTLED:
                return
            self._rows.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(astuple(facts))))
            self._pending += 1
            if self._pending >= _COMMIT_EVERY:
                self._commit(self._rows)
        except (OSError, sqlite3.Error):
            self._rows = None

    def close(self) -> None:
        """Write what is pending; failing to is harmless."""
        with contextlib.suppress(sqlite3.Error):
            if self._rows is not None:
                self._commit(self._rows)
                self._rows.close()
        self._rows = None

    def _commit(self, rows: sqlite3.Connection) -> None:
        # The oldest go first.
        rows.execute("DELETE FROM facts WHERE rowid <= (SELECT max(rowid) FROM facts) - ?", (_MAX_ROWS,))
        rows.commit()
        self._pending = 0


def _facts(values: object) -> Facts | None:
    """Check what a cache holds: anyone may have written there."""
    if not isinstance(values, list) or [type(v) for v in values] != [int, int, str, int, int, str, str]:
        return None
    return Facts(*values)
