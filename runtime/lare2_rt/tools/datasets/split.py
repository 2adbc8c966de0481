"""Splits for sets that lack them, and what a set holds more than once.

Splits take whole sources, every generator in proportion, and the same images for the same seed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from ...errors import UsageError
from .table import GENERATED, Index

TRAIN, VAL, TEST = "train", "val", "test"
Family = tuple[int, ...]  # rows that stay together


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """What becomes of the splits that a set has.

    Attributes:
        val, test: shares (0..1) of the sources of the training images to move there; 0 leaves that split as it is.
        seed: decides which.
        val_is_test: call the set's ``val`` ``test`` first: GenImage reports its results on ``val``, so that validation
            and calibration need images of their own.
    """

    val: float = 0.0
    test: float = 0.0
    seed: int = 0
    val_is_test: bool = False

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise UsageError(
                f"--val-share {self.val:g} and --test-share {self.test:g} must not be negative and must leave "
                "something to train on",
                remedy="give shares of 0 or more whose sum is below 1",
            )


def arrange_splits(index: Index, options: SplitOptions) -> Index:
    """Return the index with ``val`` renamed, where asked for, and shares of its training images moved.

    Images of one source, or of one content, stay together. Sources are drawn within each generator and within the real
    ones, so that small generators keep their part. Where the index has no splits at all, what is left is ``train``.

    Raises:
        UsageError: the index has a split that is to be made, or lacks the one that is to be taken.
    """
    if options.val_is_test:
        index = _renamed(index)
    if not options.val and not options.test:
        return index
    present = {name for name in index.split if name}
    for name, share in ((VAL, options.val), (TEST, options.test)):
        if share and name in present:
            raise UsageError(f"the set has a split {name} of its own", remedy=f"leave --{name}-share out")
    if present and TRAIN not in present:
        raise UsageError(
            f"the set has no training images to draw from: it has {', '.join(sorted(present))}",
            remedy="leave --val-share and --test-share out, or name some of its images train",
        )
    split = [name or TRAIN for name in index.split] if not present else list(index.split)
    for strata in _strata(index, split):
        seen = 0
        for families in strata:
            families.sort(key=lambda rows: _rank(index, rows, options.seed))
            # Differences of rounded sums: each stratum is at most one off, and so is their total.
            before, seen = seen, seen + len(families)
            test = round(seen * options.test) - round(before * options.test)
            val = round(seen * options.val) - round(before * options.val)
            for name, chosen in ((TEST, families[:test]), (VAL, families[test : test + val])):
                for row in chain.from_iterable(chosen):
                    split[row] = name
    return replace(index, split=tuple(split), digest="")


def _strata(index: Index, split: Sequence[str]) -> tuple[list[list[Family]], list[list[Family]]]:
    """Families of training images: the real ones, and those with generated images by generator, in order of names."""
    by_name: dict[str, list[Family]] = defaultdict(list)
    real: list[Family] = []
    for rows in _families(index):
        if {split[row] for row in rows} != {TRAIN}:
            continue
        made_by = sorted(index.generator[row] for row in rows if index.label[row] == GENERATED)
        (by_name[made_by[0]] if made_by else real).append(rows)
    return [real], [families for _, families in sorted(by_name.items())]


def _renamed(index: Index) -> Index:
    if VAL not in index.split or TEST in index.split:
        has = ", ".join(sorted({name for name in index.split if name})) or "none"
        raise UsageError("--val-is-test is for sets with a split val and without test", remedy=f"this one has: {has}")
    return replace(index, split=tuple(TEST if name == VAL else name for name in index.split), digest="")


def _families(index: Index) -> list[Family]:
    """Rows that share a source or a content, directly or through others; undecodable ones have neither and stay."""
    head: dict[str, str] = {}

    def find(name: str) -> str:
        head.setdefault(name, name)
        while head[name] != name:
            head[name] = head[head[name]]  # halves the way, or a source of thousands would be a chain of as many
            name = head[name]
        return name

    good = np.flatnonzero(index.decodable).tolist()
    for row in good:
        head[find(f"source {index.source[row]}")] = find(f"content {index.sha256[row]}")
    families: dict[str, list[int]] = defaultdict(list)
    for row in good:
        families[find(f"content {index.sha256[row]}")].append(row)
    return [tuple(rows) for rows in families.values()]


def _rank(index: Index, rows: Family, seed: int) -> str:
    """A place in the draw that depends on the seed and the family's contents, not on names, order or other images."""
    content = "\n".join(sorted(index.sha256[row] for row in rows))
    return hashlib.sha256(f"{seed}\n{content}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Groups of rows of an index, each a tuple of row numbers in order; the groups in order of their first row.

    Attributes:
        duplicates: rows of one content.
        across_splits: of those, the groups that lie in two splits or more.
        across_labels: of those, the groups with both labels.
        sources_across_splits: rows of one source with several contents, in two splits or more.
    """

    duplicates: tuple[Family, ...]
    across_splits: tuple[Family, ...]
    across_labels: tuple[Family, ...]
    sources_across_splits: tuple[Family, ...]

    @property
    def copies(self) -> int:
        """Number of rows whose content an earlier row has already."""
        return sum(len(group) - 1 for group in self.duplicates)


def find_overlaps(index: Index) -> Overlaps:
    """Compare contents and sources of the images that can be decoded."""

    def groups(names: Sequence[str]) -> tuple[Family, ...]:
        """Rows of one name, where it has several."""
        rows: dict[str, list[int]] = defaultdict(list)
        for i in np.flatnonzero(index.decodable).tolist():
            rows[names[i]].append(i)
        return tuple(tuple(group) for group in rows.values() if len(group) > 1)

    def differing(among: tuple[Family, ...], column: Sequence[object]) -> tuple[Family, ...]:
        """Those of the groups whose rows differ in a column."""
        return tuple(group for group in among if len({column[i] for i in group}) > 1)

    duplicates = groups(index.sha256)
    return Overlaps(
        duplicates=duplicates,
        across_splits=differing(duplicates, index.split),
        across_labels=differing(duplicates, index.label.tolist()),
        sources_across_splits=differing(differing(groups(index.source), index.split), index.sha256),
    )
