"""The index table: one row per image of a labelled set, in one Parquet file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from ...host.atomic import check_target, write_bytes
from ...host.integrity import sha256_of
from ...host.text import decode_name, encode_name
from ...results.arrow import arrow, encode_table, read_table

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
        return IndexRow(
            path=self.path[row],
            label=int(self.label[row]),
            generator=self.generator[row],
            split=self.split[row],
            source=self.source[row],
            width=int(self.width[row]),
            height=int(self.height[row]),
            format=self.format[row],
            jpeg_quality=int(self.jpeg_quality[row]),
            bytes=int(self.bytes[row]),
            sha256=self.sha256[row],
            error=self.error[row],
        )

    def rows(self) -> Iterator[IndexRow]:
        """Yield every image in order."""
        return (self.row(i) for i in range(len(self)))

    def select(self, rows: ArrayLike) -> Index:
        """Return the images of a boolean mask [n] or of row numbers, in that order; it has no digest of its own."""
        chosen = np.asarray(rows)
        numbers = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.intp)
        return index_of((self.row(int(i)) for i in numbers), root=self.root, layout=self.layout)


def index_of(rows: Iterator[IndexRow] | Sequence[IndexRow], *, root: str, layout: str) -> Index:
    """Return the index of these rows."""
    listed = list(rows)
    return Index(
        root=root,
        layout=layout,
        digest="",
        path=tuple(r.path for r in listed),
        label=np.array([r.label for r in listed], np.int8),
        generator=tuple(r.generator for r in listed),
        split=tuple(r.split for r in listed),
        source=tuple(r.source for r in listed),
        width=np.array([r.width for r in listed], np.int32),
        height=np.array([r.height for r in listed], np.int32),
        format=tuple(r.format for r in listed),
        jpeg_quality=np.array([r.jpeg_quality for r in listed], np.int16),
        bytes=np.array([r.bytes for r in listed], np.int64),
        sha256=tuple(r.sha256 for r in listed),
        error=tuple(r.error for r in listed),
    )


def write_index(path: str | os.PathLike[str], index: Index, *, overwrite: bool = True) -> None:
    """Write an index atomically; the same rows give the same bytes. Raises OutputError or UsageError."""
    target = Path(path)
    check_target(target, overwrite=overwrite)
    values: dict[str, Any] = {
        "path": [encode_name(name) for name in index.path],
        "label": index.label,
        "generator": index.generator,
        "split": index.split,
        "source": index.source,
        "width": index.width,
        "height": index.height,
        "format": index.format,
        "jpeg_quality": index.jpeg_quality,
        "bytes": index.bytes,
        "sha256": index.sha256,
        "error": index.error,
    }
    metadata = {
        "lare2_rt.schema": SCHEMA,
        "lare2_rt.root": encode_name(index.root),
        "lare2_rt.layout": index.layout,
    }
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
    texts = {name: tuple(table.column(name).to_pylist()) for name, kind in _types().items() if str(kind) == "string"}
    numbers = {name: table.column(name).to_numpy() for name, kind in _types().items() if str(kind) != "string"}
    try:
        paths = tuple(decode_name(name) for name in texts["path"])
        stored = decode_name(metadata.get("lare2_rt.root", ""))
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    if root is None and not Path(stored).is_absolute():
        raise UsageError(f"{file} does not say where its images are", remedy=_AGAIN)
    _check(file, {int(v) for v in np.unique(numbers["label"])} <= {REAL, GENERATED}, "label", "0 and 1")
    _check(file, set(texts["split"]) <= set(SPLITS), "split", "train, val, test and nothing")
    for name in ("width", "height", "bytes"):
        _check(file, not (numbers[name] < 0).any(), name, "no negative number")
    return Index(
        root=stored if root is None else os.path.abspath(root),
        layout=metadata.get("lare2_rt.layout", ""),
        digest=sha256_of(file),
        path=paths,
        label=numbers["label"],
        generator=texts["generator"],
        split=texts["split"],
        source=texts["source"],
        width=numbers["width"],
        height=numbers["height"],
        format=texts["format"],
        jpeg_quality=numbers["jpeg_quality"],
        bytes=numbers["bytes"],
        sha256=texts["sha256"],
        error=texts["error"],
    )


def _check(file: Path, good: bool, column: str, allowed: str) -> None:
    if not good:
        raise UsageError(f"{file}: its column {column} must hold {allowed}", remedy=_AGAIN)


def _types() -> dict[str, Any]:
    """Arrow type of each column, in the order of the file."""
    pa, _ = arrow()
    text = pa.string()
    return {
        "path": text,
        "label": pa.int8(),
        "generator": text,
        "split": text,
        "source": text,
        "width": pa.int32(),
        "height": pa.int32(),
        "format": text,
        "jpeg_quality": pa.int16(),
        "bytes": pa.int64(),
        "sha256": text,
        "error": text,
    }
