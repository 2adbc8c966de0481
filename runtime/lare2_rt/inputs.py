"""From what a user types (files, folders, quoted globs) to the list of images."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

from .decode import SUFFIXES
from .errors import UsageError


def expand(arguments: Iterable[str]) -> list[str]:
    """Return image paths in the order given; a folder gives its images recursively, sorted, without following links.

    What gives no image (a missing path, a folder without images, a glob without matches, a subfolder that cannot be
    listed) is kept as it is, so that scoring reports it like any other bad file and the others are answered.

    Raises:
        UsageError: only folders without images and globs without matches were given.
    """
    paths: list[str] = []
    empty: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = _images_below(argument)
            if not found:
                empty.append(f"no images in {argument}; image files end in {', '.join(sorted(SUFFIXES))}")
                found = [argument]
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            found = sorted(name for name in glob.glob(argument, recursive=True) if not os.path.isdir(name))
            if not found:
                empty.append(f"nothing matches {argument}; check the pattern")
                found = [argument]
        else:
            found = [argument]
        paths.extend(found)
    if empty and len(empty) == len(paths):
        raise UsageError(empty[0])
    return paths


def _images_below(folder: str) -> list[str]:
    found: list[str] = []
    # Silence about an unreadable subfolder would pass for a complete answer.
    for root, _, names in os.walk(folder, onerror=lambda error: found.append(error.filename)):
        found.extend(os.path.join(root, name) for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
    return sorted(found)
