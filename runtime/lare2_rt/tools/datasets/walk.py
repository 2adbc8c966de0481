"""Every image below a folder, in an order that does not depend on the disk."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...host.atomic import reason
from ...pixels.decode import SUFFIXES


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or folder that is not in a set although it should be, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Walk:
    """What a folder holds.

    Attributes:
        files: native paths of images relative to the folder, sorted by their bytes.
        others: number of files without the ending of an image.
        problems: subfolders that cannot be listed.
    """

    files: list[str]
    others: int
    problems: list[Problem]


@dataclass(slots=True)
class _Found:
    files: list[str] = field(default_factory=list)
    others: int = 0
    problems: list[Problem] = field(default_factory=list)


def walk(root: str) -> Walk:
    """List the images below ``root``.

    Links to folders are followed, as large sets are often spread over disks; one that leads back to a folder above it
    is not.
    """
    found = _Found()
    # A stack instead of recursion: folders may lie deeper than Python's calls may.
    stack: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while stack:
        folder, above = stack.pop()
        try:
            status = Path(root, folder).stat()
            here = (status.st_dev, status.st_ino)
            if here not in above:
                stack.extend((name, above | {here}) for name in _list(root, folder, found))
        except OSError as error:
            found.problems.append(Problem(folder or root, f"the folder cannot be listed: {reason(error)}"))
    found.files.sort(key=os.fsencode)
    found.problems.sort(key=lambda problem: os.fsencode(problem.path))
    return Walk(found.files, found.others, found.problems)


def _list(root: str, folder: str, found: _Found) -> list[str]:
    """Add the files of one folder and return its subfolders."""
    below = []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            name = os.path.join(folder, entry.name)
            if os.path.isdir(os.path.join(root, name)):  # answers False where the entry's own method would raise
                below.append(name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                found.files.append(name)
            else:
                found.others += 1
    return below
