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
from pathlib import Path

from .atomic import exchange, fsync_folder, rename_new
from .locks import folder_lock


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


def restore(out: Path, *, marker: str) -> Path | None:
    """Put back a folder that a killed build moved aside; returns the name that it had, None if nothing was done.

    Nothing is done where ``out`` exists, where not exactly one folder with a file ``marker`` stands aside, and while a
    build is at work.
    """
    with contextlib.suppress(OSError, ValueError):  # not ours to write, or no path at all
        out = Path(os.path.realpath(out))
        if os.path.lexists(out):
            return None
        candidates = [path for path in set_aside(out) if (path / marker).is_file()]
        if len(candidates) != 1 or os.name != "posix":
            return None
        with contextlib.ExitStack() as lock:
            with contextlib.suppress(FileNotFoundError):  # nobody builds
                if lock.enter_context(folder_lock(building_folder(out), seconds=2)) is None:
                    return None
            rename_new(candidates[0], out)
            fsync_folder(out.parent)
            return candidates[0]
    return None
