"""One compiled engine in the cache: what it is made from, the list of its files, and whether they are still those."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...host.atomic import write_bytes
from ...host.integrity import HashCache, digest_of, sha256_of
from ...host.locks import FileLock, try_acquire

ENTRY = "entry.json"
_SCHEMA = "lare2-rt/compiled/1"
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is to be compiled.

    Attributes:
        engine, version: by which people find the entry; label: what it is, in words, and no part of the key.
        facts: everything else that decides the result: hashes of the ONNX files, device, precision, options.
        size: bytes that the result needs, roughly.
    """

    engine: str
    version: str
    label: str
    facts: Mapping[str, str | int]
    size: int

    @property
    def key(self) -> str:
        """sha256 in hex over engine, version and facts."""
        return digest_of({"engine": self.engine, "version": self.version, "facts": dict(self.facts)})


class Entry:
    """A verified entry, which nobody removes before ``close``."""

    def __init__(self, folder: Path, digest: str, lock: FileLock) -> None:
        self.folder = folder
        self.digest = digest  # sha256 over the list of its files and their hashes
        self._lock = lock

    def close(self) -> None:
        """Let the entry go; twice is harmless."""
        self._lock.release()

    def discard(self) -> None:
        """Remove an entry that its engine refuses, unless someone else has it open."""
        self.close()
        lock = try_acquire(use_lock(self.folder), "exclusive")
        if lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            lock.release(remove=True)


def use_lock(folder: Path) -> Path:
    """Return the lock file that users of the entry in ``folder`` share and whoever removes it has for himself."""
    return folder.with_name(folder.name + ".use")


def build_lock(folder: Path) -> Path:
    """Return the lock file of whoever makes the entry in ``folder``, be it in the place of a damaged one in use."""
    return folder.with_name(folder.name + ".build")


def seal(folder: Path, recipe: Recipe) -> None:
    """Write the list of the files in ``folder``, with sizes and hashes; raises OSError or OutputError."""
    files = {path.name: {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    content = {
        "schema": _SCHEMA,
        "key": recipe.key,
        "engine": recipe.engine,
        "version": recipe.version,
        "label": recipe.label,
        "facts": dict(recipe.facts),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": files,
    }
    write_bytes(folder / ENTRY, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def read_entry(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``entry.json`` where that is one of ours for this folder, else None."""
    with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        with (folder / ENTRY).open("rb") as handle:
            raw = json.loads(handle.read(_MAX_BYTES))
        plain = all(Path(name).name == name and {"size", "sha256"} <= set(f) for name, f in raw["files"].items())
        known = all(isinstance(raw[name], str) for name in ("engine", "version", "label"))
        if plain and known and raw["files"] and (raw["schema"], raw["key"]) == (_SCHEMA, folder.name):
            return dict(raw)
    return None


def verified_digest(folder: Path, root: Path) -> str | None:
    """Return the digest of an entry whose files are exactly those that were written; None for any other.

    Sizes are always compared, and hashes through the hash cache in ``root``.
    """
    raw = read_entry(folder)
    if raw is None:
        return None
    files, hashes = raw["files"], HashCache(root)
    try:
        if {path.name for path in folder.iterdir()} != {*files, ENTRY}:
            return None
        for name, facts in files.items():
            path = folder / name
            if path.is_symlink() or path.stat().st_size != facts["size"] or hashes.sha256(path) != facts["sha256"]:
                return None
    except OSError:
        return None
    finally:
        hashes.save()
    return digest_of(files)
