"""Hashes of content, and of large files by a cache that is keyed by everything that changes when a file does."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import OutputError
from .atomic import write_bytes

_CHUNK = 1 << 22
_MAX_ENTRIES = 4096
# A clock ticks in milliseconds, on some disks in seconds: a file touched this recently could change again without any
# of its times showing it.
_SETTLED = 2.0
Progress = Callable[[int], None]


def cache_folder() -> Path:
    """Return the user's cache folder of this project (``LARE2_CACHE``, else the platform's); it may not exist yet."""
    named = os.environ.get("LARE2_CACHE")
    if named:
        return Path(named)
    from platformdirs import user_cache_path  # not needed when the variable is set

    return user_cache_path("lare2-rt")


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the sha256 of a file in hex; ``progress`` is called with the number of bytes of each chunk read."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()


def digest_of(content: object) -> str:
    """Return sha256 in hex over the JSON of ``content`` with sorted keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class HashCache:
    """Remembers hashes by (real path, size, mtime, ctime, inode), and checks that passed by a digest of all they read.

    An unwritable or damaged cache is simply not used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = (folder or cache_folder()) / "hashes.json"
        self._entries = self._read()
        self._dirty = False

    def sha256(self, path: Path, *, fresh: bool = False, progress: Progress | None = None) -> str:
        """Return the hash of ``path``; ``fresh`` reads the file even when the cache knows it."""
        key = self._key(path)
        known = None if fresh else self._entries.get(key)
        if known is not None:
            if progress is not None:
                progress(path.stat().st_size)
            return known
        value = sha256_of(path, progress)
        # Only trust the value if the file stood still while it was read, and for long enough before.
        if self._key(path) == key and time.time() - path.stat().st_ctime > _SETTLED:
            self._entries[key] = value
            self._dirty = True
        return value

    def passed(self, digest: str) -> bool:
        """Return whether the check with this digest (sha256 in hex over content and rules) is known to have passed."""
        return self._entries.get(digest) == digest

    def remember(self, digest: str) -> None:
        """Note that a check passed."""
        if not self.passed(digest):
            self._entries[digest] = digest
            self._dirty = True

    def save(self) -> None:
        """Write the cache if it changed; failing to is harmless."""
        if not self._dirty:
            return
        recent = dict(list(self._entries.items())[-_MAX_ENTRIES:])
        with contextlib.suppress(OSError, OutputError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_bytes(self._path, json.dumps(recent).encode())
        self._dirty = False

    def _read(self) -> dict[str, str]:
        try:
            raw = json.loads(self._path.read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(raw, dict):
            return {}
        return {str(k): v for k, v in raw.items() if isinstance(v, str) and len(v) == 64}

    @staticmethod
    def _key(path: Path) -> str:
        real = path.resolve()
        status = real.stat()
        facts = (real, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return "\0".join(os.fsencode(str(fact)).hex() if fact is real else str(fact) for fact in facts)
