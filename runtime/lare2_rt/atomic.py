"""Files that are either complete or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import OutputError


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


@contextlib.contextmanager
def atomic_text(path: Path, *, overwrite: bool = True) -> Iterator[IO[str]]:
    """Open a text file (UTF-8, no newline translation) that appears under ``path`` only when the block ends well.

    Raises:
        OutputError: the folder is missing, the disk is full, ``path`` is a folder, or exists and may not be replaced.
    """
    check_target(path, overwrite=overwrite)
    temporary = temporary_beside(path)
    try:
        with temporary.open("x", encoding="utf-8", errors="backslashreplace", newline="") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}; nothing was changed there") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` atomically and durably; raises OutputError."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("xb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {reason(error)}; free some space or choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError unless a file can be put at ``path``; called before long work so that it fails early."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file, for instance {path / 'results.jsonl'}")
    if not path.parent.is_dir():
        raise OutputError(f"the folder {path.parent} does not exist; create it first")
    if not overwrite and os.path.lexists(path):
        raise OutputError(f"{path} exists already; choose another name or pass --force to replace it")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} is not writable; choose another place for {path.name}")


def reason(error: OSError) -> str:
    """Return the operating system's words for ``error`` without numbers and paths ('No space left on device')."""
    return (error.strerror or str(error)).lower()
