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
from pathlib import Path

from PIL import __version__ as pillow_version

from ...errors import ImageError, no_memory
from ...host.integrity import cache_folder, sha256_of
from ...host.machine import available_threads
from ...host.text import printable
from ...pixels.decode import open_image
from .jpeg import UNKNOWN_QUALITY, estimate_quality

_VERSION = 1  # of what is measured; raised when the same file would give other facts
_MAX_ROWS = 4_000_000  # about 600 MB: GenImage has 2.7 million images
_COMMIT_EVERY = 256
# A file touched this recently could change again without any of its times showing it (see integrity.HashCache).
_SETTLED = 2.0
OnDone = Callable[[int], None]


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


def measure(path: str) -> Facts:
    """Read, hash and decode one file completely; never raises, ``error`` says what is wrong with it."""
    try:
        image = open_image(path, as_stored=True)
        # Several pictures in one JPEG file (MPO, from phones) start with an ordinary one; a turned TIFF has no format.
        form = "JPEG" if image.format == "MPO" else image.format or "TIFF"
        quality = estimate_quality(getattr(image, "quantization", None)) if form == "JPEG" else UNKNOWN_QUALITY
        size, digest = _content(path)
        return Facts(image.width, image.height, form, quality, size, digest, "")
    except ImageError as error:
        words = printable(str(error))
    except MemoryError:
        words = str(no_memory())
    except OSError:
        words = "it was removed while it was read; index again"
    size, digest = 0, ""
    with contextlib.suppress(OSError):
        size, digest = _content(path)
    return Facts(0, 0, "", UNKNOWN_QUALITY, size, digest, words)


def _content(path: str) -> tuple[int, str]:
    """Size and hash; a pipe or device has none."""
    file = Path(path)
    status = file.stat()
    if not stat.S_ISREG(status.st_mode):
        return 0, ""
    return status.st_size, sha256_of(file)


def measure_all(
    paths: Sequence[str], *, threads: int | None = None, cache: Path | None = None, done: OnDone | None = None
) -> list[Facts]:
    """Measure files in threads; facts come in the order of ``paths``.

    Args:
        paths: native paths.
        threads: default: what affinity and container quota allow.
        cache: folder of the cache; default: the user's.
        done: called with 1 after each file.
    """
    with contextlib.closing(FactsCache(cache)) as known:
        facts = []
        for fact in _in_order(paths, known, threads or available_threads()):
            facts.append(fact)
            if done is not None:
                done(1)
        return facts


def _in_order(paths: Sequence[str], known: FactsCache, threads: int) -> Iterator[Facts]:
    waiting: deque[tuple[str, bytes | None, Facts | Future[Facts]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="lare2-index") as pool:
        try:
            for path in paths:
                key = known.key(path)
                fact = known.get(key)
                waiting.append((path, key, pool.submit(measure, path) if fact is None else fact))
                if len(waiting) > 4 * threads:
                    yield _settle(waiting.popleft(), known)
            while waiting:
                yield _settle(waiting.popleft(), known)
        finally:
            for _, _, item in waiting:
                if isinstance(item, Future):
                    item.cancel()


def _settle(item: tuple[str, bytes | None, Facts | Future[Facts]], known: FactsCache) -> Facts:
    path, key, fact = item
    if isinstance(fact, Facts):
        return fact
    measured = fact.result()
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
        if self._rows is None or key is None or not facts.sha256 or "memory" in facts.error:
            return
        try:
            if self.key(path) != key or time.time() - Path(path).stat().st_ctime <= _SETTLED:
                return
            self._rows.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (key, json.dumps(astuple(facts))))
            self._pending += 1
            if self._pending >= _COMMIT_EVERY:
                self._commit()
        except (OSError, sqlite3.Error):
            self._rows = None

    def close(self) -> None:
        """Write what is pending; failing to is harmless."""
        with contextlib.suppress(sqlite3.Error):
            if self._rows is not None:
                self._commit()
                self._rows.close()
        self._rows = None

    def _commit(self) -> None:
        if self._rows is not None:
            self._rows.execute(
                "DELETE FROM facts WHERE rowid <= (SELECT max(rowid) FROM facts) - ?", (_MAX_ROWS,)
            )  # the oldest go first
            self._rows.commit()
            self._pending = 0


def _facts(values: object) -> Facts | None:
    """Check what a cache holds: anyone may have written there."""
    if not isinstance(values, list) or [type(v) for v in values] != [int, int, str, int, int, str, str]:
        return None
    return Facts(*values)
