"""What a set holds more than once: the same file again, in another split, or with the other label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from .table import Index


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Groups of rows of an index, each a tuple of row numbers in order; the groups in order of their first row.

    Attributes:
        duplicates: rows of one content.
        across_splits: of those, the groups that lie in two splits or more.
        across_labels: of those, the groups with both labels.
        sources_across_splits: rows of one source with several contents, in two splits or more.
    """

    duplicates: tuple[tuple[int, ...], ...]
    across_splits: tuple[tuple[int, ...], ...]
    across_labels: tuple[tuple[int, ...], ...]
    sources_across_splits: tuple[tuple[int, ...], ...]

    @property
    def copies(self) -> int:
        """Number of rows whose content an earlier row has already."""
        return sum(len(group) - 1 for group in self.duplicates)


def find_overlaps(index: Index) -> Overlaps:
    """Compare contents and sources of the images that can be decoded."""
    duplicates = _groups(index, lambda i: index.sha256[i])
    sources = _groups(index, lambda i: index.source[i])
    return Overlaps(
        duplicates=duplicates,
        across_splits=tuple(group for group in duplicates if len({index.split[i] for i in group}) > 1),
        across_labels=tuple(group for group in duplicates if len({int(index.label[i]) for i in group}) > 1),
        sources_across_splits=tuple(
            group
            for group in sources
            if len({index.split[i] for i in group}) > 1 and len({index.sha256[i] for i in group}) > 1
        ),
    )


def _groups(index: Index, key: Callable[[int], str]) -> tuple[tuple[int, ...], ...]:
    rows: dict[str, list[int]] = defaultdict(list)
    for i in range(len(index)):
        if not index.error[i]:
            rows[key(i)].append(i)
    return tuple(tuple(group) for group in rows.values() if len(group) > 1)
