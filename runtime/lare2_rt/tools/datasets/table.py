"""The index table: one row per image of a labelled set, in one Parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from ...host.atomic import check_target, write_bytes
from ...host.integrity import sha256_of
from ...host.text import decode_name, encode_name
from ...results.parquet import arrow, encode_table, read_table

SCHEMA = "lare2-rt/index/1"
REAL, GENERATED = 0, 1
SPLITS = ("train", "val", "test", "")
_AGAIN = "write it with 'lare2-rt index DATA --out index.parquet'"


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One image.

    Attributes:
        path: native path, relative to the index's root, or absolute where the file lies outside of it.
        label: 0 real, 1 generated.
        generator: name of what made it; empty for a real image.
        split: ``train``, ``val``, ``test`` or empty.
        source: what images of one original have in common; a split must not cut through it. Default: the sha256.
        width, height: in pixels, as stored in the file (EXIF not applied); 0 with ``error``.
        format: Pillow's name, such as ``JPEG``; empty with ``error``.
        jpeg_quality: 1..100 estimated from the quantisation tables; -1 where there are none.
        bytes: size of the file.
        sha256: of the file's content in hex; empty where it could not be read.
        error: why the image cannot be decoded; empty where it can.
    """

    path: str
    label: int
    generator: str
    split: str
    source: str
    width: int
    height: int
    format: str
    jpeg_quality: int
    bytes: int
    sha256: str
    error: str


# In the order of the file.
_NUMBERS = {"label": np.int8, "width": np.int32, "height": np.int32, "jpeg_quality": np.int16, "bytes": np.int64}
_COLUMNS: dict[str, type] = {field.name: _NUMBERS.get(field.name, str) for field in fields(IndexRow)}


@dataclass(frozen=True, slots=True, eq=False)
class Index:
    """A labelled set of images, column by column; row i of every column is about the same image.

    Attributes:
        root: absolute native path that ``path`` is relative to; layout: how the set was laid out.
        digest: sha256 in hex of the file it was read from; empty for one that was not.
        path, generator, split, source, format, sha256, error: n strings each; see ``IndexRow``.
        label: int8 [n]; width, height: int32 [n]; jpeg_quality: int16 [n]; bytes: int64 [n].
    """

    root: str
    layout: str
    digest: str
    path: tuple[str, ...]
    label: NDArray[np.int8]
    generator: tuple[str, ...]
    split: tuple[str, ...]
    source: tuple[str, ...]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    format: tuple[str, ...]
    jpeg_quality: NDArray[np.int16]
    bytes: NDArray[np.int64]
    sha256: tuple[str, ...]
    error: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.path)

    @property
    def decodable(self) -> NDArray[np.bool_]:
        """Mask [n] of the images without an error."""
        return np.array([not error for error in self.error], dtype=np.bool_)

    def file(self, row: int) -> str:
        """Return the native path of an image, fit to be opened."""
        return os.path.join(self.root, self.path[row])

    def row(self, row: int) -> IndexRow:
        """Return one image."""
        cells: list[Any] = [c[row] if isinstance(c, tuple) else c[row].item() for c in _columns(self).values()]
        return IndexRow(*cells)

    def rows(self) -> Iterator[IndexRow]:
        """Yield every image in order."""
        columns = [c if isinstance(c, tuple) else c.tolist() for c in _columns(self).values()]
        return (IndexRow(*cells) for cells in zip(*columns, strict=True))

    def select(self, rows: ArrayLike) -> Index:
        """Return the images of a boolean mask [n] or of row numbers, in that order; it has no digest of its own."""
        chosen = np.asarray(rows)
        numbers = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.intp)
        return index_of((self.row(int(i)) for i in numbers), root=self.root, layout=self.layout)


def index_of(rows: Iterable[IndexRow], *, root: str, layout: str) -> Index:
    """Return the index of these rows."""
    listed = list(rows)
    values = {name: [getattr(row, name) for row in listed] for name in _COLUMNS}
    columns: dict[str, Any] = {
        name: tuple(values[name]) if kind is str else np.array(values[name], kind) for name, kind in _COLUMNS.items()
    }
    return Index(root=root, layout=layout, digest="", **columns)


def _columns(index: Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in _COLUMNS}


def write_index(path: str | os.PathLike[str], index: Index, *, overwrite: bool = True) -> None:
    """Write an index atomically; the same rows give the same bytes. Raises OutputError or UsageError."""
    target = Path(path)
    check_target(target, overwrite=overwrite)
    values = {**_columns(index), "path": [encode_name(name) for name in index.path]}
    facts = {"schema": SCHEMA, "root": encode_name(index.root), "layout": index.layout}
    metadata = {f"lare2_rt.{name}": value for name, value in facts.items()}
    columns = {name: (values[name], kind) for name, kind in _types().items()}
    write_bytes(target, encode_table(columns, metadata))


def read_index(path: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None) -> Index:
    """Read an index.

    Args:
        path: the Parquet file.
        root: where the images are now, if they were moved; default: where they were indexed.

    Raises:
        UsageError: missing, not such a table, of another schema, or with values that no index holds.
    """
    file = Path(path)
    table, metadata = read_table(file, types=_types(), schema=SCHEMA, again=_AGAIN)
    columns: dict[str, Any] = {
        name: tuple(table.column(name).to_pylist()) if kind is str else table.column(name).to_numpy()
        for name, kind in _COLUMNS.items()
    }
    try:
        columns["path"] = tuple(decode_name(name) for name in columns["path"])
        stored = decode_name(metadata.get("lare2_rt.root", ""))
    except UsageError as error:
        raise UsageError(f"{file}: {error.problem}", remedy=error.remedy) from None
    if root is None and not Path(stored).is_absolute():
        raise UsageError(f"{file} does not say where its images are", remedy=_AGAIN)
    _check(file, {int(v) for v in np.unique(columns["label"])} <= {REAL, GENERATED}, "label", "0 and 1")
    _check(file, set(columns["split"]) <= set(SPLITS), "split", "train, val, test and nothing")
    for name in ("width", "height", "bytes"):
        _check(file, not (columns[name] < 0).any(), name, "no negative number")
    return Index(
        root=stored if root is None else os.path.abspath(root),
        layout=metadata.get("lare2_rt.layout", ""),
        digest=sha256_of(file),
        **columns,
    )


def _check(file: Path, good: bool, column: str, allowed: str) -> None:
    if not good:
        raise UsageError(f"{file}: its column {column} must hold {allowed}", remedy=_AGAIN)


def _types() -> dict[str, Any]:
    pa, _ = arrow()
    return {name: pa.string() if kind is str else pa.from_numpy_dtype(kind) for name, kind in _COLUMNS.items()}
