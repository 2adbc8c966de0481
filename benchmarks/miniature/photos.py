"""The miniature's photographs: the committed table, the split by groups, and pictures cut from them."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.miniature.protocol import PICTURE, SPLITS, Protocol
from lare2_rt.errors import UsageError

PHOTOS = Path(__file__).parents[1] / "miniature_photos"
_LARGE_GROUP = 8  # a series of more photographs would dominate a split in which pictures are judged
_SMALLEST = 132  # pixels of the short side that a crop is cut from
_FLAT = 18.0  # standard deviation below which most crops are given up: sky, walls


@dataclass(frozen=True, slots=True)
class Row:
    """A photograph in the table."""

    file: str
    group: str
    licence: str
    sha256: str


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Pictures of one split.

    Attributes:
        pixels: uint8 [N,128,128,3]; photo: int64 [N], row of the table; group: int64 [N], number of its group.
    """

    pixels: NDArray[np.uint8]
    photo: NDArray[np.int64]
    group: NDArray[np.int64]


def read_table(folder: Path = PHOTOS) -> list[Row]:
    """Return the table; raises UsageError for a file that is missing or is not the one of the table."""
    with (folder / "photos.csv").open(newline="", encoding="utf-8") as stream:
        rows = [Row(r["file"], r["group"], r["licence"], r["sha256"]) for r in csv.DictReader(stream)]
    for row in rows:
        path = folder / row.file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
            raise UsageError(f"{path} is not the photograph of the table", remedy="check it out again")
    return rows


def split_groups(rows: list[Row], protocol: Protocol) -> dict[str, str]:
    """Return group -> split. Groups stay whole; large ones go to the diffusion model."""
    sizes = Counter(row.group for row in rows)
    groups = sorted(sizes)
    order = np.random.Generator(np.random.Philox(protocol.seed)).permutation(len(groups))
    shuffled = [groups[i] for i in order]
    shuffled.sort(key=lambda group: sizes[group] <= _LARGE_GROUP)  # stable: large ones first
    bounds = np.cumsum(protocol.shares) * len(rows)
    split: dict[str, str] = {}
    taken = 0
    for group in shuffled:
        taken += sizes[group]
        split[group] = SPLITS[int(np.searchsorted(bounds, taken - 0.5))]
    return split


def cut(rows: list[Row], split: str, protocol: Protocol) -> Pictures:
    """Cut the pictures of a split: random scale, place and mirror image, a fixed number from every photograph."""
    of_group = split_groups(rows, protocol)
    numbers = {group: n for n, group in enumerate(sorted(of_group))}
    wanted = protocol.crops[SPLITS.index(split)]
    pixels, photo, group = [], [], []
    for index, row in enumerate(rows):
        if of_group[row.group] != split:
            continue
        # Every photograph has a stream of its own, so that its pictures do not change when another joins.
        seed = int(row.sha256[:15], 16)
        random = np.random.Generator(np.random.Philox(key=[seed, protocol.seed]))
        picture = Image.open(PHOTOS / row.file).convert("RGB")
        pixels += [_crop(picture, random) for _ in range(wanted)]
        photo += [index] * wanted
        group += [numbers[row.group]] * wanted
    return Pictures(np.stack(pixels), np.array(photo), np.array(group))


def _crop(photo: Image.Image, random: np.random.Generator) -> NDArray[np.uint8]:
    short = min(photo.size)
    for _ in range(8):
        side = np.exp(random.uniform(np.log(min(_SMALLEST, short)), np.log(short)))
        size = (max(PICTURE, round(photo.width * side / short)), max(PICTURE, round(photo.height * side / short)))
        whole = np.asarray(photo.resize(size, Image.Resampling.BICUBIC))
        top = int(random.integers(0, whole.shape[0] - PICTURE + 1))
        left = int(random.integers(0, whole.shape[1] - PICTURE + 1))
        crop = whole[top : top + PICTURE, left : left + PICTURE]
        if crop.std() >= _FLAT or random.random() > 0.85:
            break
    mirrored = crop[:, ::-1] if random.random() < 0.5 else crop
    return np.ascontiguousarray(mirrored)


def quarters(pixels: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Cut a random 64-pixel window out of every picture [N,128,128,3], as the autoencoder and the UNet begin with."""
    half = PICTURE // 2
    random = np.random.Generator(np.random.Philox(seed))
    places = random.integers(0, half + 1, (len(pixels), 2))
    cut_out = [p[y : y + half, x : x + half] for p, (y, x) in zip(pixels, places, strict=True)]
    return np.stack(cut_out)


def open_photo(row: Row) -> NDArray[np.uint8]:
    """Return a whole photograph, uint8 [h,w,3]."""
    return np.asarray(Image.open(PHOTOS / row.file).convert("RGB"))


def fingerprints(pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return a difference hash, bool [N,64], of pictures: alike for a picture and its rescaled or re-encoded copy."""
    small = [np.asarray(Image.fromarray(p).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16) for p in pixels]
    stacked = np.stack(small)
    return (np.diff(stacked, axis=2) > 0).reshape(len(pixels), -1)
