"""Reading a feature folder: maps and embeddings through memory maps, found by content."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import UsageError
from .layout import AGAIN, FEATURES, ROWS, FeatureSet, Kind, read_features, read_rows, shard_name
from .shards import Float32, npy_header, npy_size


class Features:
    """The finished rows of a feature folder; row i of everything is about the content ``sha256[i]``.

    Attributes:
        folder: where it is; info: the content of ``features.json``.
        sha256: n contents, in the order of their places; path: where each was when it was extracted, native.
        logits: float32 [n,2], index 1 = generated; probability: float64 [n] in 0..1.
        failures: sha256 (empty: unreadable), path and reason of what has no map.
    """

    def __init__(self, folder: Path, info: FeatureSet) -> None:
        """Use ``open_features``."""
        self.folder = folder
        self.info = info
        rows = read_rows(folder)
        good = [row for row in rows if not row.error]
        if len(good) != info.count:
            raise UsageError(
                f"the extraction into {folder} is not finished", remedy="run the same 'lare2-rt extract' again"
            )
        self.sha256 = tuple(row.sha256 for row in good)
        self.path = tuple(row.path for row in good)
        self.logits: Float32 = np.array([row.logits for row in good], np.float32).reshape(-1, 2)
        self.probability: NDArray[np.float64] = np.array([row.probability for row in good], np.float64)
        self.failures = tuple((row.sha256, row.path, row.error) for row in rows if row.error)
        self._places: NDArray[np.int64] = np.array([(row.shard, row.row) for row in good], np.int64).reshape(-1, 2)
        self._counts = dict(zip(*(v.tolist() for v in np.unique(self._places[:, 0], return_counts=True)), strict=True))
        if any(last >= self._counts[number] for number, last in self._places.tolist()):
            raise UsageError(f"{folder / ROWS} leaves out rows of a shard", remedy=AGAIN)
        self._where = {sha256: i for i, sha256 in enumerate(self.sha256)}
        self._shards: dict[tuple[Kind, int], Float32] = {}
        for kind in info.kinds:
            self._check(kind)

    @property
    def lare_id(self) -> str:
        """What determines the maps."""
        return self.info.lare_id

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C,h,w) of a map."""
        return self.info.shape

    def __len__(self) -> int:
        return len(self.sha256)

    def lare(self, row: int) -> Float32:
        """Return the map of one row, float32 [C,h,w], a read-only view of the file."""
        return self._row("lare", row)

    def batch(self, rows: ArrayLike) -> Float32:
        """Return the maps of rows, float32 [n,C,h,w], a copy in the order asked for."""
        return self._rows("lare", rows)

    def embedding(self, row: int) -> Float32:
        """Return the CLIP embedding of one row, float32 [D], a read-only view; raises UsageError where none are."""
        return self._row("embedding", row)

    def embeddings(self, rows: ArrayLike) -> Float32:
        """Return the CLIP embeddings of rows, float32 [n,D], a copy; raises UsageError where the folder has none."""
        return self._rows("embedding", rows)

    def find(self, contents: Iterable[str]) -> NDArray[np.int64]:
        """Return the row of each sha256, -1 for one without a map: ``features.find(index.sha256)`` aligns an index."""
        return np.array([self._where.get(sha256, -1) for sha256 in contents], np.int64)

    def _row(self, kind: Kind, row: int) -> Float32:
        number, place = self._places[self._checked([row])[0]].tolist()
        view: Float32 = self._shard(kind, number)[place]
        return view

    def _rows(self, kind: Kind, rows: ArrayLike) -> Float32:
        places = self._places[self._checked(rows)]
        out = np.empty((len(places), *self.info.row_shape(kind)), np.float32)
        for number in np.unique(places[:, 0]).tolist():
            here = places[:, 0] == number
            out[here] = self._shard(kind, number)[places[here, 1]]
        return out

    def _checked(self, rows: ArrayLike) -> NDArray[np.int64]:
        numbers = np.asarray(rows, dtype=np.int64)
        # A -1 from ``find`` must not become the last row.
        if numbers.ndim != 1 or (numbers.size and (numbers.min() < 0 or numbers.max() >= len(self))):
            raise UsageError(
                f"rows must be a list of numbers from 0 to {len(self) - 1}", remedy="leave out what find() gave -1 for"
            )
        return numbers

    def _shard(self, kind: Kind, number: int) -> Float32:
        if kind == "embedding" and self.info.embedding is None:
            raise UsageError(
                f"{self.folder} holds no embeddings", remedy="extract them with 'lare2-rt extract --embeddings'"
            )
        if (kind, number) not in self._shards:
            path = self.folder / shard_name(kind, number)
            shape = (self._counts[number], *self.info.row_shape(kind))
            self._shards[kind, number] = np.memmap(path, "<f4", "r", len(npy_header(shape)), shape)
        return self._shards[kind, number]

    def _check(self, kind: Kind) -> None:
        """Every shard is there, is as long as the rows say, and starts with the header that it must have."""
        for number in self._counts:
            path = self.folder / shard_name(kind, number)
            shape = (self._counts[number], *self.info.row_shape(kind))
            header = npy_header(shape)
            try:
                with path.open("rb") as stream:
                    good = stream.read(len(header)) == header and path.stat().st_size == npy_size(shape)
            except OSError:
                good = False
            if not good:
                raise UsageError(f"{path} is missing or damaged", remedy=AGAIN)


def open_features(folder: str | os.PathLike[str], *, lare_id: str | None = None) -> Features:
    """Open a feature folder.

    Args:
        folder: from ``lare2-rt extract``.
        lare_id: of the bundle that the features are for; None takes any.

    Raises:
        UsageError: not a feature folder, not finished, damaged, or of another LaRE.
    """
    path = Path(folder)
    info = read_features(path)
    if info is None:
        raise UsageError(f"{path} holds no {FEATURES}", remedy=f"make it with 'lare2-rt extract DATA --out {path}'")
    if lare_id is not None and info.lare_id != lare_id:
        raise UsageError(
            f"{path} holds features of LaRE {info.lare_id[:12]}, and {lare_id[:12]} is needed: weights, "
            "noise or preprocessing differ",
            remedy="extract with the bundle in use into another folder",
        )
    if not (path / ROWS).exists():
        raise UsageError(f"the extraction into {path} is not finished", remedy="run the same 'lare2-rt extract' again")
    return Features(path, info)
