"""Lists of images with labels: the official annotation format, and CSV with a heading."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from ...errors import UsageError
from ...host.atomic import reason
from . import generators
from .layouts import Collected, Entry, split_named
from .table import GENERATED, REAL

_LABELS = {"0": REAL, "real": REAL, "1": GENERATED, "fake": GENERATED, "generated": GENERATED}
_MAX_BYTES = 1 << 30


def collect_list(path: str, *, root: str | None = None) -> Collected:
    """Read a list of images.

    Lines ``PATH LABEL`` are split at a tab, else at the last blank (the official map file and training list do one
    each); a ``.csv`` has a heading with ``path``, ``label`` and, where known, ``generator``, ``split``, ``source``.

    Args:
        path: the list. Where a line does not say the split or generator, the list's own name (``val_adm_12k.txt``) and
            those of the image's folders may.
        root: what relative paths are relative to; default: the folder of the list.

    Raises:
        UsageError: unreadable, empty, or with a wrong line, which is named.
    """
    text = _read(path)
    base = os.path.abspath(root if root is not None else Path(path).parent)
    is_csv = Path(path).suffix.lower() == ".csv"
    entries = _csv_entries(path, text, base) if is_csv else _line_entries(path, text, base)
    if not entries:
        raise UsageError(
            f"{path} lists no image", remedy="write lines 'PATH LABEL' with label 0 (real) or 1 (generated)"
        )
    return Collected(base, "list", entries)


def lists_in(folder: str) -> list[str]:
    """Return the names of the CSV files in a folder whose heading makes them lists of labelled images.

    One that cannot be read is none; a file instead of a folder has none.
    """
    if not os.path.isdir(folder):
        return []
    found = []
    for path in sorted(Path(folder).glob("*.csv")):
        if not path.is_file():  # a pipe would be waited for
            continue
        try:
            with path.open("rb") as stream:
                first = stream.readline(1 << 16).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
            heading = next(csv.reader([first]), [])
        except (OSError, csv.Error):
            continue
        if {"path", "label"} <= set(heading):
            found.append(path.name)
    return found


def _read(path: str) -> str:
    """The text, in which bytes that are not UTF-8 stay what they are in file names."""
    try:
        if Path(path).stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} is larger than {_MAX_BYTES >> 20} MiB, which no list is", remedy="check the path")
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}", remedy="check the path") from error
    text = content.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    if "\0" in text:
        raise UsageError(f"{path} is no text", remedy="give a folder of images, a list of them, or an index")
    return text


def _line_entries(path: str, text: str, base: str) -> list[Entry]:
    entries = []
    # Not splitlines(): a file name may hold any of the other characters that end a line for it.
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.rstrip(" \t\r")
        if not bare:
            continue
        name, separator, label = bare.rpartition("\t" if "\t" in bare else " ")
        name = name.rstrip(" ")  # columns may be aligned
        where = f"{path} line {number}"
        if not separator or not name:
            raise UsageError(f"{where}: no path or no label", remedy="write 'PATH LABEL' with label 0 or 1")
        entries.append(_entry(where, {"path": name, "label": label}, list_name=path, base=base))
    return entries


def _csv_entries(path: str, text: str, base: str) -> list[Entry]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    heading: list[str] | None = None
    entries: list[Entry] = []
    while True:
        where = f"{path} line {reader.line_num + 1}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{where}: not valid CSV ({error})", remedy="correct it") from None
        if heading is None:
            heading = cells or []
            missing = " and no column ".join(sorted({"path", "label"} - set(heading)))
            if missing:
                raise UsageError(f"{where}: no column {missing}", remedy="name it in the heading")
        elif cells is None:
            return entries
        elif cells:
            if len(cells) != len(heading):
                words = f"{where}: {len(cells)} cells under {len(heading)} headings"
                raise UsageError(words, remedy="quote what holds a comma")
            entries.append(_entry(where, dict(zip(heading, cells, strict=True)), list_name=path, base=base))


def _entry(where: str, cells: dict[str, str], *, list_name: str, base: str) -> Entry:
    """Check one line; what it does not say comes from names."""
    if not cells["path"]:
        raise UsageError(f"{where}: no path", remedy="write the path of an image")
    label = _LABELS.get(cells["label"].strip().lower())
    if label is None:
        words = f"{where}: the label is {cells['label'][:40]!r}"
        raise UsageError(words, remedy="it must be 0 (real) or 1 (generated)")
    listed = Path(list_name).name
    given = cells.get("split")
    split = split_named(given.strip()) if given is not None else split_named(listed.split("_")[0].split(".")[0]) or ""
    if split is None:
        raise UsageError(f"{where}: the split is {given!r:.40}", remedy="it must be train, val, test or empty")
    native = cells["path"] if os.sep == "/" else cells["path"].replace("/", os.sep)
    # An absolute path below the base becomes relative to it; one elsewhere stays as it is.
    path = native.removeprefix(base.rstrip(os.sep) + os.sep)
    generator = ""
    if label == GENERATED:
        generator = cells.get("generator", "").strip()
        if not generator:
            *folders, name = Path(path).parts
            generator = generators.guess(reversed(folders), name)
        if generator == generators.UNKNOWN:
            generator = generators.of_file(listed) or generator
    return Entry(path, label, generator, split, cells.get("source", ""))
