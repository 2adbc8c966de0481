"""From what a user types (files, folders, quoted patterns, lists) to the list of images."""

from __future__ import annotations

import fnmatch
import glob
import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from ..errors import UsageError
from ..pixels.decode import SUFFIXES

_LONGEST_LIST = 1 << 30  # bytes


def expand(arguments: Iterable[str]) -> list[str]:
    """Return image paths in the order given; a folder gives its images recursively, sorted by name.

    Links to folders are followed, but each folder is read once: under its own place below the argument where it has
    one, else under the first link to it; so no circle of links is endless. ``**`` in a pattern means the same.

    What gives no image (a missing path, a folder without images, a pattern without matches, a subfolder that cannot be
    listed) is kept as it is, so that scoring reports it like any other bad file and the others are answered.

    Raises:
        UsageError: only folders without images and patterns without matches were given.
    """
    return _expanded(arguments, patterns=True)


def expand_names(names: Iterable[str]) -> list[str]:
    """Return image paths as ``expand`` does, but take every name literally: from a list no pattern is meant."""
    return _expanded(names, patterns=False)


def read_list(stream: IO[bytes], *, null: bool, name: str) -> list[str]:
    """Return the paths of a list: one a line, or each ended by a NUL byte as ``find -print0`` writes them.

    Empty lines are left out, and so are a byte order mark and the carriage returns of Windows; nothing is a comment.

    Args:
        stream: the open list.
        null: whether NUL bytes separate.
        name: of the list, for sentences.

    Raises:
        UsageError: the list names nothing, is larger than 1 GiB, or holds NUL bytes where lines are meant.
    """
    content = stream.read(_LONGEST_LIST + 1)
    if len(content) > _LONGEST_LIST:
        raise UsageError(f"{name} is larger than {_LONGEST_LIST >> 20} MiB, which no list is", remedy="check the path")
    if not null and b"\0" in content:
        raise UsageError(f"{name} holds NUL bytes", remedy="add --null if they separate its paths, else it is no list")
    content = content.removeprefix(b"\xef\xbb\xbf")
    parts = content.split(b"\0") if null else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    paths = [os.fsdecode(part) for part in parts if part]
    if not paths:
        raise UsageError(f"{name} names no file", remedy="write one path a line")
    return paths


def _expanded(arguments: Iterable[str], *, patterns: bool) -> list[str]:
    paths: list[str] = []
    empty: list[UsageError] = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = _images_below(argument)
            if not found:
                endings = ", ".join(sorted(SUFFIXES))
                empty.append(UsageError(f"no images in {argument}", remedy=f"image files end in {endings}"))
                found = [argument]
        elif patterns and not os.path.lexists(argument) and glob.has_magic(argument):
            found = _matching(argument)
            if not found:
                empty.append(UsageError(f"nothing matches {argument}", remedy="check the pattern"))
                found = [argument]
        else:
            found = [argument]
        paths.extend(found)
    if empty and len(empty) == len(paths):
        raise empty[0]
    return paths


def _images_below(folder: str) -> list[str]:
    unreadable: list[str] = []
    files = _files_below(folder, unreadable)
    # Silence about an unreadable subfolder would pass for a complete answer.
    return sorted([path for path in files if os.path.splitext(path)[1].lower() in SUFFIXES] + unreadable)


def _files_below(root: str, unreadable: list[str]) -> list[str]:
    """Return every file below a folder, unsorted; folders that cannot be listed are added to ``unreadable``."""
    seen: set[tuple[int, int]] = set()
    found: list[str] = []
    # Links wait until all that can be reached without them is read: which name a folder has must not depend on the
    # order in which the disk tells names.
    waiting = deque([root])
    while waiting:
        links: list[str] = []
        stack = [waiting.popleft()]
        while stack:
            folder = stack.pop()
            try:
                status = os.stat(folder)  # noqa: PTH116 - names that may not be text
                here = (status.st_dev, status.st_ino)
                if here in seen:
                    continue
                seen.add(here)
                with os.scandir(folder) as entries:
                    paths = [os.path.join(folder, entry.name) for entry in entries]
            except OSError:
                unreadable.append(folder)
                continue
            for path in paths:
                if not os.path.isdir(path):
                    found.append(path)
                else:
                    (links if Path(path).is_symlink() else stack).append(path)
        waiting.extend(sorted(links))
    return found


def _matching(pattern: str) -> list[str]:
    """Return the files that match; ``**`` stands for any number of folders, as in ``glob``."""
    parts = pattern.split("/")
    if "**" not in parts:
        return sorted(name for name in glob.glob(pattern) if not os.path.isdir(name))
    # Python's glob follows a circle of links for as long as the system lets it.
    at = parts.index("**")
    before, rest = "/".join(parts[:at]), [part for part in parts[at:] if part]
    roots = glob.glob(before + "/") if before else ["/" if pattern.startswith("/") else ""]
    found: set[str] = set()
    for root in roots:
        for path in _files_below(root or ".", []):
            below = path[len(root or "./") :].lstrip("/")
            if _matches(below.split("/"), rest):
                found.add(os.path.join(root, below))
    return sorted(found)


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Tell whether the names of a path match; those that begin with a dot only match a part that does."""
    if not pattern:
        return not names
    part, *rest = pattern
    hidden = bool(names) and names[0].startswith(".") and not part.startswith(".")
    if part == "**":
        if not rest:
            return not any(name.startswith(".") for name in names)
        return _matches(names, rest) or (bool(names) and not hidden and _matches(names[1:], pattern))
    return bool(names) and not hidden and fnmatch.fnmatchcase(names[0], part) and _matches(names[1:], rest)
