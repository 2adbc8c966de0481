"""Files that are either complete or not there, and two renames that POSIX lacks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import OutputError

_Settle = Callable[[Path, Path], Path]
_HERE = -100  # AT_FDCWD: paths are relative to the working folder, as everywhere
_NO_REPLACE, _EXCHANGE = 1, 2
# The system, the file system or a container's filter does not know the call or the flag. EPERM is what older filters
# answer; a true lack of permission comes up again in the call that is then made instead.
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})


def fsync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable; silently skipped where folders cannot be opened (Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def temporary_beside(path: Path) -> Path:
    """Return an unused hidden name in the folder of ``path``, so that a rename onto it stays on one disk."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


@dataclass(slots=True)
class Draft:
    """A file in the making.

    Attributes:
        stream: takes the content.
        target: the name that the file will have, which may still be changed; after the block, the name that it got.
    """

    stream: IO[Any]
    target: Path


@contextlib.contextmanager
def draft_text(path: Path, *, overwrite: bool = True) -> Iterator[Draft]:
    """Open a text file (UTF-8, no newline translation) that appears under its target when the block ends well.

    A target that was taken in the meantime is not replaced unless ``overwrite``, a folder or device never is: the file
    then appears as ``NAME.1``, ``NAME.2`` and so on, whichever is free.

    Raises:
        OutputError: as ``check_target``, or the disk is full.
    """
    check_target(path, overwrite=overwrite)
    with _draft(path, _text, lambda draft, target: _settle(draft, target, overwrite=overwrite)) as draft:
        yield draft


@contextlib.contextmanager
def draft_bytes(path: Path, *, overwrite: bool = True) -> Iterator[Draft]:
    """``draft_text`` for binary files. Raises OutputError as it does."""
    check_target(path, overwrite=overwrite)
    opened: Callable[[Path], IO[Any]] = lambda temporary: temporary.open("xb")  # noqa: E731
    with _draft(path, opened, lambda draft, target: _settle(draft, target, overwrite=overwrite)) as draft:
        yield draft


@contextlib.contextmanager
def atomic_text(path: Path, *, overwrite: bool = True) -> Iterator[IO[str]]:
    """``draft_text`` for files whose name is final: yields the stream.

    Raises:
        OutputError: as ``draft_text``, or the name was taken in the meantime; the text says where the content is.
    """
    with draft_text(path, overwrite=overwrite) as draft:
        yield draft.stream
    if draft.target != path:
        raise taken_in_the_meantime(path, draft.target)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically and durably; raises OutputError."""
    with _draft(path, lambda temporary: temporary.open("xb"), Path.replace) as draft:
        draft.stream.write(content)


def settle(draft: Path, target: Path, *, overwrite: bool) -> Path:
    """Give a finished file its name as ``draft_text`` does, and return the name that it got; raises OutputError."""
    try:
        return _settle(draft, target, overwrite=overwrite)
    except OSError as error:
        raise _cannot_write(target, error) from error


def taken_in_the_meantime(wanted: Path, got: Path) -> OutputError:
    """Return the error of a file that could not have its name."""
    return OutputError(
        f"{wanted} appeared in the meantime and was not replaced",
        remedy=f"the results are in {got}, rename it as you like",
    )


def _text(path: Path) -> IO[str]:
    return path.open("x", encoding="utf-8", errors="backslashreplace", newline="")


@contextlib.contextmanager
def _draft(path: Path, opened: Callable[[Path], IO[Any]], settle: _Settle) -> Iterator[Draft]:
    """Write beside ``path``, make it durable, and rename; a failure leaves nothing behind and is an OutputError."""
    temporary = temporary_beside(path)
    try:
        with opened(temporary) as handle:
            draft = Draft(handle, path)
            yield draft
            handle.flush()
            os.fsync(handle.fileno())
        draft.target = settle(temporary, draft.target)
        fsync_folder(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _settle(draft: Path, target: Path, *, overwrite: bool) -> Path:
    """Give a finished draft its name, or the first free one made of it; returns that name."""
    if overwrite and (target.is_file() or not target.exists()):
        return draft.replace(target)
    name, number = target, 0
    while True:
        try:
            rename_new(draft, name)
        except FileExistsError:
            number += 1
            name = target.with_name(f"{target.name}.{number}")
        else:
            return name


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless a file can be put at ``path``; called before long work so that it fails early.

    Refused are a folder, a missing or unwritable parent, an existing file unless ``overwrite``, and always a device or
    pipe: a rename onto ``/dev/null`` would replace it for everyone.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder", remedy=f"name a file, for instance {path / 'results.jsonl'}")
        if not path.parent.is_dir():
            raise OutputError(f"the folder {path.parent} does not exist", remedy="create it first")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is not a regular file", remedy="name another one")
        if not overwrite and os.path.lexists(path):
            raise OutputError(f"{path} exists already", remedy="choose another name or pass --force to replace it")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise OutputError(
                f"the folder {path.parent} is not writable", remedy=f"choose another place for {path.name}"
            )
        with contextlib.suppress(FileNotFoundError):
            os.lstat(temporary_beside(path))  # fails where the name, or the longer one for the meantime, is too long
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {reason(error)}",
        remedy="nothing was changed there, free some space or choose another place",
    )


def reason(error: OSError) -> str:
    """Return the operating system's words for ``error`` without numbers and paths ('no space left on device')."""
    return (error.strerror or str(error)).lower()


def exchange(one: Path, other: Path) -> bool:
    """Swap two files or folders in one step; returns False, with nothing done, where that is not possible.

    Raises:
        OSError: either is missing, or the disk or the access rights are against it.
    """
    return _renameat2(one, other, _EXCHANGE)


def rename_new(source: Path, target: Path) -> None:
    """Rename a file or folder to a name that nothing has; whatever appears there first is left alone.

    Only where neither the system nor the file system offers such a rename (nor, for files, hard links) does a moment
    remain between looking and renaming.

    Raises:
        FileExistsError: the name is taken, be it by a broken link.
        OSError: as ``os.rename``.
    """
    if _renameat2(source, target, _NO_REPLACE):
        return
    if not source.is_dir():
        try:
            target.hardlink_to(source)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            source.unlink()
            return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Call Linux's ``renameat2``; returns whether it is supported, raises OSError where it failed."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:  # a C library from before 2018, or musl
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))
