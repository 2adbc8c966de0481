"""From a folder or a list to an index: find the images, look at each, keep the reasons for those that fail."""

from __future__ import annotations

import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

from ...errors import UsageError
from ...host.atomic import reason
from ...host.console import say
from ...host.text import encode_name
from .facts import OnProgress, measure_all
from .layouts import FOLDER_LAYOUTS, Collected, Problem, collect_folder
from .lists import collect_list
from .table import Index, IndexRow, index_of, read_index

LayoutChoice = Literal["auto", "genimage", "tiny-genimage", "aigcdetect", "folders", "community-forensics", "list"]


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

    Raises UsageError for nothing there, a layout that does not fit, or a wrong line of a list.
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
        progress: called before the first image and after each.

    Raises:
        UsageError: see ``collect``; or no listed file is there.
    """
    found = collect(data, layout=layout, root=root)
    files = [os.path.join(found.root, entry.path) for entry in found.entries]
    if found.layout == "list" and not any(map(os.path.lexists, files)):
        raise UsageError(
            f"none of the images that {os.fspath(data)} lists is in {found.root}", remedy="say where with --root"
        )
    facts = measure_all(files, threads=threads, cache=cache, progress=progress)
    rows = []
    for entry, fact in zip(found.entries, facts, strict=True):
        generator, source = encode_name(entry.generator), encode_name(entry.source) or fact.sha256
        rows.append(IndexRow(entry.path, entry.label, generator, entry.split, source, *astuple(fact)))
    return Indexed(index_of(rows, root=found.root, layout=found.layout), found.unlabelled, found.others, found.problems)


def open_data(data: str) -> Index:
    """Return the index in a Parquet file, or that of a folder or list, made on the way; raises UsageError."""
    if os.path.isfile(data) and is_parquet(data):
        return read_index(data)
    say(f"indexing {data}; 'lare2-rt index' keeps the result for the next time")
    return build_index(data).index


def is_parquet(path: str) -> bool:
    """Tell by its first bytes whether a file is a Parquet table; raises UsageError where it cannot be read."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(4) == b"PAR1"
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}", remedy="check its access rights") from error
