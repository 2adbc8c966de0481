"""The cache of compiled engines: in the user's own folder, each entry whole or absent, verified whenever it is opened.

Loading a compiled engine can run code, so an entry never comes from a bundle and is never taken from a folder that
somebody else may write to. An entry is a folder named by its key. Beside it are two locks: one shared by those who use
the entry, so that nobody removes it, and one for whoever makes it, so that nobody else does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...errors import EngineError, OutputError
from ...host.atomic import reason, temporary_beside
from ...host.integrity import cache_folder
from ...host.locks import acquire, try_acquire
from ...host.text import parse_amount
from .entry import ENTRY, Entry, Recipe, build_lock, read_entry, seal, use_lock, verified_digest

Notify = Callable[[str], None]

DEFAULT_LIMIT = 20_000_000_000
_ATTEMPTS = 3  # each is in vain only if the entry is removed or damaged between its making and its opening
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class CachedEngine:
    """One entry for people; ``size`` in bytes, ``used`` in seconds since the epoch, no engine where it is damaged."""

    key: str
    engine: str
    version: str
    label: str
    size: int
    used: float
    in_use: bool


class CompiledCache:
    """Compiled engines under ``<root>/compiled``; ``root`` is ``LARE2_CACHE``, else the user's cache folder.

    Raises:
        UsageError: LARE2_CACHE_LIMIT is no size.
    """

    def __init__(self, root: Path | None = None, *, limit: int | None = None) -> None:
        self.root = Path(os.path.abspath(root or cache_folder()))
        self.folder = self.root / "compiled"
        self.limit = cache_limit() if limit is None else limit  # bytes

    def open(self, recipe: Recipe, build: Callable[[Path], None], *, notify: Notify | None = None) -> Entry:
        """Return the entry of ``recipe``, which is built when it is missing or damaged.

        Args:
            build: writes the files into an empty folder; raises EngineError or OSError.
            notify: called with one line before anything that takes time.

        Raises:
            EngineError: it cannot be built or kept; nothing of it is left then.
        """
        say = notify or (lambda line: None)
        folder = self.folder / recipe.key
        try:
            self._prepare()
            for _ in range(_ATTEMPTS):
                entry = self._opened(folder)
                if entry is not None:
                    return entry
                self._build(recipe, build, say)
        except (OSError, OutputError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            why = reason(cause) if isinstance(cause, OSError) else str(error)
            raise EngineError(
                f"the compiled {recipe.label} of {recipe.engine} cannot be kept in {self.folder}: {why}",
                remedy="free some space or set LARE2_CACHE to another folder",
            ) from error
        raise EngineError(
            f"what {recipe.engine} compiled disappears from {self.folder} or changes there",
            remedy="see what else writes to it, or set LARE2_CACHE to another folder",
        )

    def entries(self) -> list[CachedEngine]:
        """Return all entries, the most recently used first."""
        if not self.folder.is_dir():
            return []
        found = [_describe(path) for path in self.folder.iterdir() if _KEY.fullmatch(path.name)]
        return sorted(found, key=lambda entry: (-entry.used, entry.key))

    def clear(self, engine: str | None = None) -> tuple[list[CachedEngine], list[CachedEngine]]:
        """Remove the entries of an engine, or all; returns those that are gone and those that stay because in use.

        Raises:
            OutputError: an entry cannot be removed.
        """
        gone: list[CachedEngine] = []
        kept: list[CachedEngine] = []
        for entry in self.entries():
            if engine is None or entry.engine == engine:
                (gone if self._remove(entry.key) else kept).append(entry)
        self._sweep()
        return gone, kept

    def _prepare(self) -> None:
        """Make the folder, for its owner alone, and refuse one into which somebody else can put code."""
        if not self.folder.is_dir():
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
        if not hasattr(os, "geteuid"):
            return
        if self.folder.stat().st_mode & 0o077:
            with contextlib.suppress(OSError):  # not ours, or on a read-only disk: judged below as it is
                self.folder.chmod(0o700)
        status = self.folder.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise EngineError(
                f"other users can write to {self.folder} and so put code there",
                remedy="set LARE2_CACHE to a folder of your own",
            )

    def _opened(self, folder: Path) -> Entry | None:
        """Return the entry in ``folder`` if it is whole, marked as used now."""
        if not folder.is_dir():
            return None
        lock = acquire(use_lock(folder), "shared")
        try:
            digest = verified_digest(folder, self.root)
        except BaseException:
            lock.release()
            raise
        if digest is None:
            lock.release()
            return None
        with contextlib.suppress(OSError):  # a read-only cache remembers no times
            os.utime(folder / ENTRY)
        return Entry(folder, digest, lock)

    def _build(self, recipe: Recipe, build: Callable[[Path], None], say: Notify) -> None:
        def waiting() -> None:
            say(f"waiting for another process, which compiles {recipe.label} for {recipe.engine}")

        folder = self.folder / recipe.key
        lock = acquire(build_lock(folder), "exclusive", waiting=waiting)
        staging, damaged = temporary_beside(folder), temporary_beside(folder)
        try:
            if verified_digest(folder, self.root) is not None:
                return  # another process made it while this one waited
            if os.path.lexists(folder):
                say(f"the compiled {recipe.label} of {recipe.engine} is damaged; it is compiled again")
                folder.rename(damaged)  # whoever has it open keeps it open
            self._make_room(recipe.size, say)
            say(
                f"compiling {recipe.label} for {recipe.engine} {recipe.version} ({recipe.size / 1e6:.0f} MB), once: "
                f"it is kept in {self.folder}"
            )
            staging.mkdir(mode=0o700)
            build(staging)
            seal(staging, recipe)
            staging.rename(folder)
        finally:
            for path in (staging, damaged):
                shutil.rmtree(path, ignore_errors=True)
            lock.release(remove=True)
        self._make_room(0, say, spare=recipe.key)

    def _make_room(self, size: int, say: Notify, *, spare: str | None = None) -> None:
        """Remove what was not used for longest until ``size`` bytes more keep to the limit; what is in use stays."""
        self._sweep()
        entries = self.entries()
        total = sum(entry.size for entry in entries) + size
        for entry in reversed(entries):
            if total <= self.limit:
                break
            with contextlib.suppress(OutputError):  # what cannot be removed stays
                if entry.key != spare and self._remove(entry.key):
                    total -= entry.size
                    name = f"{entry.label} of {entry.engine}" if entry.engine else "a damaged entry"
                    say(f"removed {name}: LARE2_CACHE_LIMIT lets compiled engines take {self.limit / 1e9:g} GB")
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise EngineError(
                f"compiling needs {size / 1e6:.0f} MB in {self.folder}, where {free / 1e6:.0f} MB are free",
                remedy="free some space or set LARE2_CACHE to a folder on another disk",
            )

    def _remove(self, key: str) -> bool:
        """Remove an entry; False where it is in use. Raises OutputError."""
        lock = try_acquire(use_lock(self.folder / key), "exclusive")
        if lock is None:
            return False
        try:
            shutil.rmtree(self.folder / key)
        except OSError as error:
            lock.release()
            raise OutputError(
                f"cannot remove {self.folder / key}: {reason(error)}", remedy="check its access rights"
            ) from error
        lock.release(remove=True)
        return True

    def _sweep(self) -> None:
        """Remove what processes left that were killed while they compiled."""
        for path in self.folder.glob(".*.tmp"):
            lock = try_acquire(build_lock(self.folder / path.name[1:65]), "exclusive")
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                lock.release(remove=True)


def cache_limit() -> int:
    """Return the bytes that compiled engines may take: ``LARE2_CACHE_LIMIT`` (such as 500MB or 20G), else 20 GB.

    Raises:
        UsageError: the variable is no size.
    """
    text = os.environ.get("LARE2_CACHE_LIMIT")
    if not text:
        return DEFAULT_LIMIT
    return parse_amount(text, "LARE2_CACHE_LIMIT")


def _describe(folder: Path) -> CachedEngine:
    size, used = 0, 0.0
    with contextlib.suppress(OSError):
        size = sum(path.lstat().st_size for path in folder.iterdir())
        used = (folder / ENTRY).stat().st_mtime
    raw = read_entry(folder) or {"engine": "", "version": "", "label": ""}
    lock = try_acquire(use_lock(folder), "exclusive")
    if lock is not None:
        lock.release(remove=True)
    return CachedEngine(folder.name, raw["engine"], raw["version"], raw["label"], size, used, in_use=lock is None)
