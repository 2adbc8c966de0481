"""From a folder or a list to an index: find the images, look at each, keep the reasons for those that fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...errors import UsageError
from ...host.text import encode_name
from .facts import Facts, measure_all
from .layouts import FOLDER_LAYOUTS, Collected, Entry, collect_folder
from .lists import collect_list
from .table import Index, IndexRow, index_of
from .walk import Problem

LayoutChoice = Literal["auto", "genimage", "tiny-genimage", "aigcdetect", "folders", "community-forensics", "list"]


OnProgress = Callable[[int, int], None]  # called with the number of images done and of all


@dataclass(frozen=True, slots=True)
class Indexed:
    """An index and what is not in it.

    Attributes:
        index: images in the order of their paths' bytes (folders) or as listed; those with ``error`` are in it too.
        unlabelled: images that lie in no folder with a label; others: files that are no images.
        problems: folders that cannot be listed.
    """

    index: Index
    unlabelled: tuple[str, ...]
    others: int
    problems: tuple[Problem, ...]


def collect(data: str | os.PathLike[str], *, layout: LayoutChoice = "auto", root: str | None = None) -> Collected:
    """Find the labelled images of a folder or list without looking at them.

    Raises:
        UsageError: nothing there, a layout that does not fit, or a wrong line of a list.
    """
    path = os.fspath(data)
    if os.path.isdir(path):
        if layout == "list":
            raise UsageError(f"{path} is a folder", remedy="for the layout 'list' give a file with lines 'PATH LABEL'")
        if root is not None:
            raise UsageError("--root is for lists", remedy="the paths of a folder's images are relative to the folder")
        return collect_folder(path, next((name for name in FOLDER_LAYOUTS if name == layout), None))
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist", remedy="check the path")
    if layout not in ("auto", "list"):
        raise UsageError(f"{path} is a file", remedy=f"the layout '{layout}' is of folders")
    return collect_list(path, root=root)


def build_index(
    data: str | os.PathLike[str],
    *,
    layout: LayoutChoice = "auto",
    root: str | None = None,
    threads: int | None = None,
    cache: Path | None = None,
    progress: OnProgress | None = None,
) -> Indexed:
    """Index a folder or a list of images.

    Args:
        data: folder in one of the layouts, list with lines ``PATH LABEL``, or CSV with a heading.
        layout: ``auto`` tells it from the folders' names.
        root: for lists: what relative paths are relative to; default: the folder of the list.
        threads: of decoding; default: what affinity and container quota allow.
        cache: folder that remembers measured files; default: ``LARE2_CACHE``, else the user's.
        progress: called after each image.

    Raises:
        UsageError: see ``collect``; or no listed file is there.
    """
    found = collect(data, layout=layout, root=root)
    files = [os.path.join(found.root, entry.path) for entry in found.entries]
    if found.layout == "list" and not any(map(os.path.lexists, files)):
        raise UsageError(
            f"none of the images that {os.fspath(data)} lists is in {found.root}", remedy="say where with --root"
        )
    done = 0

    def step(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(files))

    if progress is not None:
        progress(0, len(files))
    facts = measure_all(files, threads=threads, cache=cache, done=step)
    rows = [_row(entry, fact) for entry, fact in zip(found.entries, facts, strict=True)]
    return Indexed(index_of(rows, root=found.root, layout=found.layout), found.unlabelled, found.others, found.problems)


def _row(entry: Entry, facts: Facts) -> IndexRow:
    return IndexRow(
        path=entry.path,
        label=entry.label,
        generator=encode_name(entry.generator),
        split=entry.split,
        source=encode_name(entry.source) or facts.sha256,
        width=facts.width,
        height=facts.height,
        format=facts.format,
        jpeg_quality=facts.jpeg_quality,
        bytes=facts.bytes,
        sha256=facts.sha256,
        error=facts.error,
    )
