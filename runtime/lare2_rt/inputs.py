"""From what a user types (files, folders, quoted globs) to the list of images."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable

from .decode import SUFFIXES
from .errors import UsageError


def expand(arguments: Iterable[str]) -> list[str]:
    """Return image paths in the order given; a folder gives its images recursively, sorted, without following links.

    A path that does not exist is kept unless it is a glob, and so is a subfolder that cannot be listed: scoring reports
    them like any other bad file.

    Raises:
        UsageError: a folder without images or a glob without matches.
    """
    paths: list[str] = []
    for argument in arguments:
        if os.path.isdir(argument):
            found = _images_below(argument)
            if not found:
                raise UsageError(f"no images in {argument}; image files end in {', '.join(sorted(SUFFIXES))}")
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            found = sorted(name for name in glob.glob(argument, recursive=True) if not os.path.isdir(name))
            if not found:
                raise UsageError(f"nothing matches {argument}; check the pattern")
        else:
            found = [argument]
        paths.extend(found)
    return paths


def _images_below(folder: str) -> list[str]:
    found: list[str] = []
    # Silence about an unreadable subfolder would pass for a complete answer.
    for root, _, names in os.walk(folder, onerror=lambda error: found.append(error.filename)):
        found.extend(os.path.join(root, name) for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
    return sorted(found)
