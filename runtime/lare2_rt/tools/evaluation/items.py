"""Which images an evaluation is about."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UsageError
from .scores import Flags
from .summary import group_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..datasets.table import Index

EVERYTHING = "all"


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image.

    Attributes:
        path: native path to open; name: path as the index has it, for reports.
        label: 0 real, 1 generated; generator: empty for a real image, ``unknown`` where none is named.
        source: group of related images; sha256: of the file in hex.
    """

    path: str
    name: str
    label: int
    generator: str
    source: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Images of one split.

    Attributes:
        items: in the index's order, each file content once.
        split: ``train``, ``val``, ``test`` or ``all``.
        digest, layout: of the index.
        unreadable: rows that the index marks as broken; duplicates: rows whose content came before.
    """

    items: tuple[Item, ...]
    split: str
    digest: str
    layout: str
    unreadable: int
    duplicates: int

    @property
    def generated(self) -> Flags:
        """Truth, bool [n]."""
        return np.array([item.label == 1 for item in self.items], np.bool_)

    @property
    def groups(self) -> NDArray[np.intp]:
        """Group numbers [n]."""
        return group_numbers([item.source for item in self.items])

    @property
    def generators(self) -> dict[str, int]:
        """Number of images per generator, by name."""
        return dict(sorted(Counter(item.generator for item in self.items if item.label == 1).items()))


def select(index: Index, split: str | None, *, default: str = "test") -> Selection:
    """Return the images of a split.

    Args:
        index: the labelled set.
        split: ``train``, ``val``, ``test`` or ``all``; None: ``default`` where the index has splits, else all images.
        default: see ``split``.

    Raises:
        UsageError: no image there, or one class only.
    """
    present = {name for name in index.split if name}
    if split is None:
        split = default if present else EVERYTHING
    rows = [row for row in index.rows() if split in (EVERYTHING, row.split)]
    if not rows:
        has, names = ", ".join(sorted(present)) or "no splits", " or ".join((*sorted(present), EVERYTHING))
        raise UsageError(f"the index has no image in split {split!r}: it has {has}", remedy=f"use --split {names}")
    items: dict[str, Item] = {}
    readable = [row for row in rows if not row.error and row.sha256]
    for row in readable:
        path = os.path.join(index.root, row.path)
        generator = (row.generator or "unknown") if row.label == 1 else ""
        item = Item(path, row.path, row.label, generator, row.source, row.sha256)
        kept = items.setdefault(row.sha256, item)
        if kept.label != item.label:
            raise UsageError(
                f"{item.name} and {kept.name} are the same file with different labels", remedy="correct the index first"
            )
    selection = Selection(
        tuple(items.values()),
        split,
        index.digest,
        index.layout,
        unreadable=len(rows) - len(readable),
        duplicates=len(readable) - len(items),
    )
    check_both_classes(selection.items, f"split {split!r}")
    return selection


def check_both_classes(items: Sequence[Item], where: str) -> None:
    """Raise UsageError when ``items`` lack real or generated images."""
    labels = {item.label for item in items}
    for label, word in ((0, "real"), (1, "generated")):
        if label not in labels:
            raise UsageError(f"{where} has no readable {word} image, and both classes are needed", remedy="add some")
