"""A new folder in the place of an old one: at any moment, and after any kill, one of the two can be used.

Beside a folder ``NAME`` a new one is made in ``.NAME.building``, locked by its maker. Where the file system can, the
two swap names in one step. Elsewhere the old one is first moved aside to ``.NAME.old-XXXXXXXX``; whoever then finds
``NAME`` missing because the maker was killed in between puts the old one back (``restore``).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ..bundle.manifest import MANIFEST
from .atomic import fsync_folder
from .rename import exchange, rename_new


def building_folder(out: Path) -> Path:
    """Return where the next ``out`` is made."""
    return out.with_name(f".{out.name}.building")


def set_aside(out: Path) -> list[Path]:
    """Return the folders that were moved aside for ``out``, sorted; empty where its parent cannot be listed."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.old-[0-9a-f]{{8}}")
    try:
        with os.scandir(out.parent) as entries:
            names = [e.name for e in entries if pattern.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [out.with_name(name) for name in sorted(names)]


@contextlib.contextmanager
def folder_lock(folder: Path, *, seconds: float, create: bool = False) -> Iterator[int | None]:
    """Hold the lock of a folder: yields its descriptor, or None when another process kept it for ``seconds``.

    The folder is the one that has the name now, not one that had it when the wait began.

    Raises:
        OSError: there is none and ``create`` is false, or it cannot be made or opened.
    """
    deadline = time.monotonic() + seconds
    while True:
        if create:
            folder.mkdir(exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            locked = _lock(handle, deadline)
            if not locked or _is_still(folder, handle):
                yield handle if locked else None
                return
        finally:
            os.close(handle)


def _lock(handle: int, deadline: float) -> bool:
    import fcntl  # not on every system, and needed by few callers

    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _is_still(folder: Path, handle: int) -> bool:
    status = os.fstat(handle)
    with contextlib.suppress(FileNotFoundError):
        now = folder.stat()
        return (now.st_dev, now.st_ino) == (status.st_dev, status.st_ino)
    return False


def swap_in(folder: Path, out: Path) -> None:
    """Put ``folder`` at ``out``; what was there, and whatever earlier kills left aside, is removed.

    Raises:
        OSError: it cannot be done; ``out`` is what it was.
    """
    old = out.with_name(f".{out.name}.old-{secrets.token_hex(4)}")
    if not out.exists():
        folder.rename(out)
    else:
        # For a moment the old folder may stand under the name where folders are made: nobody else may take it there.
        with folder_lock(out, seconds=2):
            if exchange(folder, out):
                with contextlib.suppress(OSError):  # the next maker removes its content
                    folder.rename(old)
            else:
                _in_two_steps(folder, out, old)
    fsync_folder(out.parent)
    for path in set_aside(out):
        shutil.rmtree(path, ignore_errors=True)


def _in_two_steps(folder: Path, out: Path, old: Path) -> None:
    out.rename(old)
    try:
        folder.rename(out)
    except OSError:
        old.rename(out)
        raise


def restore(out: Path) -> Path | None:
    """Put back a bundle that was moved aside by a killed build; returns the name that it had, None if nothing was done.

    Nothing is done where ``out`` exists, where not exactly one bundle stands aside, and while a build is at work.
    """
    with contextlib.suppress(OSError, ValueError):  # not ours to write, or no path at all
        out = Path(os.path.realpath(out))
        if os.path.lexists(out):
            return None
        candidates = [path for path in set_aside(out) if (path / MANIFEST).is_file()]
        if len(candidates) != 1 or os.name != "posix":
            return None
        with _no_build(out) as free:
            if free:
                rename_new(candidates[0], out)
                fsync_folder(out.parent)
                return candidates[0]
    return None


@contextlib.contextmanager
def _no_build(out: Path) -> Iterator[bool]:
    """Keep builds out; yields False if one is at work."""
    with contextlib.ExitStack() as stack:
        try:
            handle = stack.enter_context(folder_lock(building_folder(out), seconds=2))
        except FileNotFoundError:
            free = True
        else:
            free = handle is not None
        yield free
