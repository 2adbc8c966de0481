"""Which images train, validate and test, which LaRE map belongs to each, and what random numbers they meet.

Random numbers are a function of what they are for, so that neither workers, processes nor a resume can shift them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lare2_rt.errors import ImageError, UsageError
from lare2_rt.tools.datasets.table import Index
from lare2_rt.tools.evaluation.items import Item, check_both_classes, select
from lare2_rt.tools.evaluation.summary import group_numbers
from lare2_rt.tools.features.reader import Features

Purpose = str | int


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Images of one part.

    Attributes:
        items: the images; rows: int64 [n], the row of each in the features (-1 everywhere without features).
    """

    items: tuple[Item, ...]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The images of a run.

    Attributes:
        train, validation: never share a group; test: None where the index has no split ``test``.
        validation_from: ``val`` where the index has that split, else ``train``.
        without_lare: images that were left out because the extraction failed on them.
    """

    train: Part
    validation: Part
    test: Part | None
    validation_from: str
    without_lare: int


def read_checked(item: Item) -> bytes:
    """Return a file's content; raises ImageError when it is not the file that was indexed.

    LaRE is found by content: with another picture under the same name, pixels and map would not belong together.
    """
    try:
        content = Path(item.path).read_bytes()
    except OSError as error:
        raise ImageError(f"{item.path} cannot be read ({error.strerror})", remedy="check the index's root") from error
    if hashlib.sha256(content).hexdigest() != item.sha256:
        raise ImageError(f"{item.path} is another file than when the index was written", remedy="write the index again")
    return content


def split_parts(index: Index, features: Features | None, *, validation_share: float, seed: int) -> Parts:
    """Take the parts from an index.

    Without a split ``val``, validation images are drawn from the training images by groups, apart for groups with and
    without generated images. The official script validates, schedules and selects on test images.

    Raises:
        UsageError: no training images, a part with one class, a group in two parts, or images without LaRE.
    """
    left_out = _Counter()
    split = "train" if any(index.split) else "all"  # all images train where the index knows no splits
    train_items = left_out.without_failed(select(index, split).items, features)
    names = set(index.split)
    if "val" in names:
        validation_items = left_out.without_failed(select(index, "val").items, features)
        validation_from = "val"
    else:
        train_items, validation_items = _draw(train_items, validation_share, seed)
        validation_from = "train"
    test_items = left_out.without_failed(select(index, "test").items, features) if "test" in names else None
    for items, where in ((train_items, "the training part"), (validation_items, "the validation part")):
        check_both_classes(items, where)
    parts = {"train": train_items, "validation": validation_items, "test": test_items or []}
    _check_disjoint(parts)
    return Parts(
        train=_with_rows(train_items, features),
        validation=_with_rows(validation_items, features),
        test=None if test_items is None else _with_rows(test_items, features),
        validation_from=validation_from,
        without_lare=left_out.count,
    )


class _Counter:
    """Leaves out images that the extraction failed on, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def without_failed(self, items: Sequence[Item], features: Features | None) -> list[Item]:
        if features is None:
            return list(items)
        failed = {sha256 for sha256, _, _ in features.failures}
        kept = [item for item in items if item.sha256 not in failed]
        self.count += len(items) - len(kept)
        return kept


def _draw(items: list[Item], validation_share: float, seed: int) -> tuple[list[Item], list[Item]]:
    groups = group_numbers([item.source for item in items])
    generated = np.array([item.label == 1 for item in items], np.bool_)
    with_generated = np.unique(groups[generated])
    chosen: set[int] = set()
    random = generator(seed, "validation")
    for members in (with_generated, np.setdiff1d(groups, with_generated)):
        count = round(len(members) * validation_share)
        chosen.update(random.permutation(members)[: max(count, 1)].tolist())
    train = [item for item, group in zip(items, groups.tolist(), strict=True) if group not in chosen]
    return train, [item for item, group in zip(items, groups.tolist(), strict=True) if group in chosen]


def _check_disjoint(parts: dict[str, list[Item]]) -> None:
    seen: dict[str, str] = {}
    for name, items in parts.items():
        for item in items:
            for key in {item.source or item.sha256, item.sha256}:
                other = seen.setdefault(key, name)
                if other != name:
                    raise UsageError(
                        f"{item.name} is of the source {key[:80]!r}, which is in the {other} part and in the {name} "
                        "part, so results would be too good",
                        remedy="give each source one split in the index",
                    )


def _with_rows(items: list[Item], features: Features | None) -> Part:
    if features is None:
        return Part(tuple(items), np.full(len(items), -1, np.int64))
    rows = features.find(item.sha256 for item in items)
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise UsageError(
            f"{len(missing)} of {len(items)} images have no LaRE in {features.folder}, such as "
            f"{items[int(missing[0])].name}",
            remedy="extract them with 'lare2-rt extract'",
        )
    return Part(tuple(items), rows)


def generator(*purpose: Purpose) -> np.random.Generator:
    """Return NumPy's Philox for a purpose such as (seed, "order", epoch)."""
    return np.random.Generator(np.random.Philox(key=_key(*purpose)))


def seed_torch(*purpose: Purpose) -> None:
    """Seed torch's generators of all devices for what comes next (initial weights; dropout of one step)."""
    torch.manual_seed(_key(*purpose) & (1 << 63) - 1)


def order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Return the order of ``count`` images in an epoch."""
    return generator(seed, "order", epoch).permutation(count)


def _key(*purpose: Purpose) -> int:
    return int.from_bytes(hashlib.sha256(repr(purpose).encode()).digest()[:16], "little")
