"""Locks between processes, which the system lifts when their holder ends in whatever way."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

Kind = Literal["shared", "exclusive"]
# What file systems answer that know no locks; and places where no lock file can be made, so that nobody else can
# compile or remove anything there either.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_FILE = (errno.EACCES, errno.EROFS, errno.EPERM)
_PATIENCE = 5  # attempts before somebody is told: whoever only looks at a lock holds it for an instant


class FileLock:
    """A lock that is held until ``release``; threads of one process exclude each other as processes do.

    Attributes:
        handle: its descriptor, which a child may hold too; None once it is released, or where none was taken.
    """

    def __init__(self, path: Path, handle: int | None) -> None:
        self._path = path
        self.handle = handle

    def release(self, *, remove: bool = False) -> None:
        """Give the lock up; twice is harmless. ``remove`` also removes the file, which only an exclusive holder may."""
        if self.handle is None:
            return
        if remove:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self.handle)
        self.handle = None


def acquire(path: Path, kind: Kind, *, waiting: Callable[[], None] | None = None) -> FileLock:
    """Wait for a lock on ``path``, which is created; ``waiting`` is called once if someone else holds it.

    Where locks do not exist (a read-only folder, some network file systems, Windows) none is taken.
    """
    for _ in range(_PATIENCE):
        lock = try_acquire(path, kind)
        if lock is not None:
            return lock
        time.sleep(0.02)
    if waiting is not None:
        waiting()
    lock = _acquire(path, kind, _open_file, block=True)
    assert lock is not None  # only an attempt that does not wait can be in vain
    return lock


def try_acquire(path: Path, kind: Kind) -> FileLock | None:
    """Return a lock on ``path`` as ``acquire`` does, or None where someone else holds it."""
    return _acquire(path, kind, _open_file, block=False)


@contextlib.contextmanager
def folder_lock(folder: Path, *, seconds: float, create: bool = False) -> Iterator[int | None]:
    """Hold the exclusive lock of a folder: yields its descriptor, or None when another process kept it for ``seconds``.

    The folder is the one that has the name now, not one that had it when the wait began.

    Raises:
        OSError: there is none and ``create`` is false, or it cannot be made or opened.
    """

    def opened(path: Path) -> int:
        if create:
            path.mkdir(exist_ok=True)
        return os.open(path, os.O_RDONLY)

    deadline = time.monotonic() + seconds
    while (lock := _acquire(folder, "exclusive", opened, block=False)) is None and time.monotonic() <= deadline:
        time.sleep(0.05)
    try:
        yield None if lock is None else lock.handle
    finally:
        if lock is not None:
            lock.release()


def _acquire(path: Path, kind: Kind, opened: Callable[[Path], int | None], *, block: bool) -> FileLock | None:
    try:
        import fcntl
    except ImportError:
        return FileLock(path, None)
    operation = (fcntl.LOCK_SH if kind == "shared" else fcntl.LOCK_EX) | (0 if block else fcntl.LOCK_NB)
    while True:
        handle = opened(path)
        if handle is None:
            return FileLock(path, None)
        try:
            fcntl.flock(handle, operation)
            # The former holder may have removed it while we waited: then this lock guards nothing.
            if os.path.samestat(os.fstat(handle), path.stat()):
                return FileLock(path, handle)
            os.close(handle)
        except FileNotFoundError:
            os.close(handle)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return FileLock(path, handle)  # open, though not locked
            os.close(handle)
            raise
        except BaseException:  # Ctrl-C while waiting
            os.close(handle)
            raise


def _open_file(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
    try:
        return os.open(path, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return None
