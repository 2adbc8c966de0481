"""What to extract: contents, each with the places where it lies, in the order of the index."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import UsageError
from ..datasets.build import collect, is_parquet
from ..datasets.facts import OnProgress, measure_all
from ..datasets.layouts import walk
from ..datasets.table import Index, read_index
from .layout import Row, failed_row


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One file: its name for reports, the native path to open, its sha256 (empty: unreadable) and what is wrong."""

    name: str
    file: str
    sha256: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """One content and all files that have it, in order."""

    sha256: str
    files: tuple[ImageFile, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """The files to extract and the sha256 of the index that lists them, None where there is none."""

    files: tuple[ImageFile, ...]
    index_sha256: str | None = None


def sources_of(
    data: str | os.PathLike[str],
    *,
    root: str | None = None,
    threads: int | None = None,
    progress: OnProgress | None = None,
) -> Sources:
    """Return the images of an index file, of a list, or of a folder, whatever its layout; labels play no part.

    Args:
        data: index in Parquet, list or CSV as ``lare2-rt index`` takes it, or a folder.
        root: where the images of an index or list are, if not where it says.
        threads: of reading a list or folder; an index is taken at its word.
        progress: called after each image that is read.

    Raises:
        UsageError: nothing there, or a list with a wrong line.
    """
    path = os.fspath(data)
    if os.path.isfile(path) and is_parquet(path):
        return of_index(read_index(path, root=root))
    if os.path.isdir(path):
        base, names = os.path.abspath(path), walk(path).files
        if not names:
            raise UsageError(f"no images in {path}", remedy="check the path")
    else:
        found = collect(path, root=root)
        base, names = found.root, [entry.path for entry in found.entries]
    files = [os.path.join(base, name) for name in names]
    facts = measure_all(files, threads=threads, progress=progress)
    return Sources(
        tuple(ImageFile(n, f, fact.sha256, fact.error) for n, f, fact in zip(names, files, facts, strict=True))
    )


def of_index(index: Index) -> Sources:
    """Return the images of an index."""
    files = (ImageFile(row.path, os.path.join(index.root, row.path), row.sha256, row.error) for row in index.rows())
    return Sources(tuple(files), index.digest or None)


def contents_of(files: Iterable[ImageFile]) -> tuple[list[Content], list[Row]]:
    """Return the contents to extract in the order in which they first come, and the files that cannot be."""
    places: dict[str, list[ImageFile]] = {}
    failures = []
    for file in files:
        if file.error or not file.sha256:
            failures.append(failed_row(file.sha256, file.name, file.error or "it has no sha256; index it again"))
        else:
            places.setdefault(file.sha256, []).append(file)
    return [Content(sha256, tuple(found)) for sha256, found in places.items()], failures
