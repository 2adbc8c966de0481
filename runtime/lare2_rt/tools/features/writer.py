"""Writing a feature folder so that a kill at any moment costs at most one batch and never changes a byte.

Every row has its place before it is computed: contents in the order of the index, as many to a shard as fit. A batch is
written into the shard's draft and made durable, then its rows are journalled and made durable; a full draft gets its
name. A later run takes the journal's word for what is finished, checks it against the draft's checksums, and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from ...errors import EngineError, OutputError, UsageError
from ...host.atomic import fsync_folder, reason
from ...host.locks import FileLock, try_acquire
from .layout import (
    AGAIN,
    FEATURES,
    JOURNAL,
    LOCK,
    ROWS,
    FeatureSet,
    Kind,
    Row,
    read_features,
    read_rows,
    shard_name,
    write_features,
    write_rows,
)
from .shards import Draft, Entry, Float32, Journal, checksum, npy_size, read_journal

_LEFTOVER = re.compile(rf"\.({re.escape(FEATURES)}|{re.escape(ROWS)})\.[0-9a-f]{{8}}\.tmp")


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """The results for one content.

    Attributes:
        sha256, path: which; see ``layout.Row``.
        lare: float32 [C,h,w]; embedding: float32 [D], used only where the folder holds embeddings.
        logits: (real, generated); probability: of being generated, 0..1.
    """

    sha256: str
    path: str
    lare: Float32
    embedding: Float32
    logits: tuple[float, float]
    probability: float


class FeatureWriter:
    """A feature folder that is open for writing, by one process at a time."""

    def __init__(self, folder: Path, features: FeatureSet, *, lock: FileLock) -> None:
        """Use ``open_writer``."""
        self._folder = folder
        self._features = features
        self._lock = lock
        self._drafts: dict[Kind, Draft] = {}
        self._shard = self._filled = 0  # the shard in the making, and its rows so far
        self._rows, keep = self._recover()
        self._journal = Journal(folder / JOURNAL, keep=keep)
        if self._filled == features.shard:  # killed between the last row and the name
            self._complete()

    @property
    def features(self) -> FeatureSet:
        """The content of ``features.json``."""
        return self._features

    @property
    def finished(self) -> frozenset[str]:
        """sha256 of the contents that need not be computed again."""
        return frozenset(row.sha256 for row in self._rows)

    def append(self, batch: Sequence[Finished]) -> list[Row]:
        """Store the next results, in order, and return their rows; they are durable then. Raises OutputError."""
        rest = list(batch)
        before = len(self._rows)
        try:
            while rest:
                fitting, rest = rest[: self._features.shard - self._filled], rest[self._features.shard - self._filled :]
                self._store(fitting)
                if self._filled == self._features.shard:
                    self._complete()
        except OSError as error:
            raise self._cannot_write(error) from error
        return self._rows[before:]

    def finish(self, failures: Sequence[Row]) -> None:
        """Complete the last shard and write ``rows.parquet`` and ``features.json``; raises OutputError."""
        try:
            if self._filled:
                self._complete()
            write_rows(self._folder, [*self._rows, *failures], self._features.lare_id)
            self._features = self._features.model_copy(update={"count": len(self._rows)})
            write_features(self._folder, self._features)
            self._journal.close(remove=True)
            fsync_folder(self._folder)
        except OSError as error:
            raise self._cannot_write(error) from error

    def close(self) -> None:
        """Let go of the folder; without ``finish`` it waits for the next run."""
        for draft in self._drafts.values():
            draft.close()
        self._journal.close()
        self._lock.release(remove=True)

    def _store(self, results: Sequence[Finished]) -> None:
        start = self._filled
        arrays: dict[Kind, Float32] = {"lare": np.stack([result.lare for result in results])}
        if self._features.embedding is not None:
            arrays["embedding"] = np.stack([result.embedding for result in results])
        for kind in self._features.kinds:
            got, wanted = arrays[kind].shape[1:], self._features.row_shape(kind)
            if got != wanted:  # it would shift every row behind it
                raise EngineError(
                    f"the engine gave {kind} as {list(got)} instead of {list(wanted)}", remedy="report it"
                )
            self._draft(kind).write(start, arrays[kind])
        rows = [Row(r.sha256, r.path, self._shard, start + i, r.logits, r.probability) for i, r in enumerate(results)]
        sums = [checksum([arrays[kind][i] for kind in self._features.kinds]) for i in range(len(results))]
        self._journal.add(list(zip(rows, sums, strict=True)))
        self._rows.extend(rows)
        self._filled += len(rows)

    def _complete(self) -> None:
        for kind in self._features.kinds:
            self._draft(kind).complete(self._filled)
        self._drafts.clear()
        self._shard, self._filled = self._shard + 1, 0

    def _draft(self, kind: Kind) -> Draft:
        if kind not in self._drafts:
            path = self._folder / shard_name(kind, self._shard)
            self._drafts[kind] = Draft(path, self._features.row_shape(kind))
        return self._drafts[kind]

    def _recover(self) -> tuple[list[Row], int]:
        """Find out what is finished: the rows, and the length of the journal that tells them."""
        rows = [row for row in read_rows(self._folder) if not row.error] if (self._folder / ROWS).exists() else []
        self._shard = rows[-1].shard + 1 if rows else 0
        keep = 0
        # What the table has already is left out: a kill came before the journal was removed.
        fresh = [entry for entry in read_journal(self._folder / JOURNAL) if entry.row.shard >= self._shard]
        for number, group in groupby(fresh, lambda entry: entry.row.shard):
            journalled = list(group)
            if number != self._shard or [entry.row.row for entry in journalled] != list(range(len(journalled))):
                raise UsageError(f"{self._folder / JOURNAL} is out of order", remedy=AGAIN)
            if (shard := self._folder / shard_name("lare", number)).exists():
                if shard.stat().st_size != npy_size((len(journalled), *self._features.shape)):
                    raise UsageError(f"{shard} has another number of rows than {JOURNAL} says", remedy=AGAIN)
                intact = journalled
                self._shard += 1
            else:
                intact = self._intact(journalled)
                self._filled = len(intact)
            rows.extend(entry.row for entry in intact)
            keep = intact[-1].end if intact else keep
            if self._filled or not intact:
                break
        return rows, keep

    def _intact(self, journalled: list[Entry]) -> list[Entry]:
        """The rows of an unfinished shard that its drafts really hold."""
        for kind in self._features.kinds:
            draft = self._draft(kind)
            if draft.path.exists():
                draft.reopen()
        there = min(self._draft(kind).rows_there() for kind in self._features.kinds)
        intact = []
        for entry in journalled[:there]:
            arrays = [self._draft(kind).read(entry.row.row) for kind in self._features.kinds]
            if checksum(arrays) != entry.checksum:
                break
            intact.append(entry)
        return intact

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write into {self._folder}: {reason(error)}",
            remedy="what is finished is kept: free some space and run the same command again",
        )


def open_writer(folder: Path, features: FeatureSet) -> FeatureWriter:
    """Open a new or unfinished folder, or a finished one to add to it.

    Args:
        folder: is created; an existing one must be empty or hold features.
        features: what is to be written. What an existing folder says must agree, or this raises; its ``builds`` are
            completed by the new ones.

    Raises:
        UsageError: the folder's content is damaged.
        OutputError: the folder holds something else or features of another kind, is in use, or cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
        lock = try_acquire(folder / LOCK, "exclusive")
    except OSError as error:
        raise OutputError(f"cannot write into {folder}: {reason(error)}", remedy="choose another folder") from error
    if lock is None:
        raise OutputError(f"another extraction is writing into {folder}", remedy="wait for it or choose another folder")
    try:
        existing = read_features(folder)
        for path in folder.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                path.unlink()
            elif existing is None and path.name != LOCK:
                raise OutputError(f"{folder} is not empty and holds no features", remedy="choose another folder")
        if existing is not None:
            features = _joined(folder, existing, features)
        if existing != features:
            write_features(folder, features)
        return FeatureWriter(folder, features, lock=lock)
    except OSError as error:
        lock.release(remove=True)
        raise OutputError(f"cannot write into {folder}: {reason(error)}", remedy="choose another folder") from error
    except BaseException:
        lock.release(remove=True)
        raise


def _joined(folder: Path, existing: FeatureSet, wanted: FeatureSet) -> FeatureSet:
    """Check that new rows may stand beside the old ones; raises OutputError."""
    if existing.lare_id != wanted.lare_id:
        raise OutputError(
            f"{folder} holds features of LaRE {existing.lare_id[:12]} and the bundle makes "
            f"{wanted.lare_id[:12]}: its weights, noise or preprocessing differ",
            remedy="choose another folder",
        )
    fields = ("bundle_id", "engine", "device", "precision", "shape", "embedding", "shard")
    for field in fields:
        old, new = getattr(existing, field), getattr(wanted, field)
        if old != new:
            words = "none" if old is None else str(old)[:40], "none" if new is None else str(new)[:40]
            raise OutputError(
                f"{folder} holds features with {field.replace('_', ' ')} {words[0]}, not {words[1]}",
                remedy="choose another folder, or the same options as before",
            )
    builds = (*existing.builds, *(build for build in wanted.builds if build not in existing.builds))
    return existing.model_copy(update={"builds": builds, "index_sha256": wanted.index_sha256})
