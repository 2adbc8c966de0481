"""Batches: pixels, LaRE maps or the noise to compute them with, and labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lare2_rt.bundle.manifest import Method
from lare2_rt.errors import Lare2Error
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import Pixels, preprocess
from lare2_rt.tools.evaluation.corruptions import Corruption, blur, corrupt, jpeg, noise
from lare2_rt.tools.evaluation.items import Item
from lare2_rt.tools.features.reader import Features

from .clip_cache import ClipCache
from .data import Part, generator, read_checked
from .options import TrainOptions

Sample = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes and policies that pixels are made with: the bundle's, with the CLIP window of the tower in training."""

    method: Method
    policy: Preprocessing
    crop_size: int


class Samples(Dataset[Sample]):
    """One epoch of a part; item ``i`` is a function of (options, epoch, image) alone.

    Each sample holds ``label`` int64 [], ``crop`` uint8 [C,C,3] or (kept features of a frozen CLIP) ``embedding`` and
    ``layer3``, and ``lare`` float32 [c,h,w] or, to compute it, ``image`` uint8 [S,S,3] and with per-image noise
    ``noise`` float32 [1+E,c,h,w].
    """

    def __init__(
        self,
        part: Part,
        options: TrainOptions,
        epoch: int,
        *,
        geometry: Geometry,
        features: Features | None,
        cache: ClipCache | None,
    ) -> None:
        self._part, self._options, self._epoch = part, options, epoch
        self._geometry, self._features, self._cache = geometry, features, cache

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: int) -> Sample:
        item, geometry, options = self._part.items[index], self._geometry, self._options
        sample: Sample = {"label": torch.tensor(item.label)}
        stored = self._features is not None and not options.computes_lare
        if stored:
            assert self._features is not None
            sample["lare"] = torch.from_numpy(np.array(self._features.lare(int(self._part.rows[index]))))
        if self._cache is not None:
            sample |= self._cache.sample(item.sha256)
            if stored:
                return sample
        view = training_view(
            item,
            options,
            self._epoch,
            policy=geometry.policy,
            image_size=geometry.method.image_size,
            crop_size=geometry.crop_size,
        )
        if self._cache is None:
            sample["crop"] = torch.from_numpy(np.array(view.crop))
        if not stored:
            sample["image"] = torch.from_numpy(np.array(view.image))
        if options.noise == "per-image":
            shape = (1 + geometry.method.ensemble, *geometry.method.latent_shape)
            draw = generator(options.seed, "noise", self._epoch, item.sha256).standard_normal(shape, dtype=np.float32)
            sample["noise"] = torch.from_numpy(draw)
        return sample


class _Caught(Dataset[Sample | Lare2Error]):
    """Samples whose errors are values: torch rebuilds what a worker raises from its text, without the remedy."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __getitem__(self, index: int) -> Sample | Lare2Error:
        try:
            return self._samples[index]
        except Lare2Error as error:
            return error


def _collated(samples: list[Sample | Lare2Error]) -> Sample | Lare2Error:
    for sample in samples:
        if isinstance(sample, Lare2Error):
            return sample
    batch: Sample = default_collate(samples)
    return batch


def batches(samples: Samples, chosen: Sequence[Sequence[int]], *, workers: int) -> Iterator[Sample]:
    """Yield the batches whose image numbers ``chosen`` lists, each tensor with a batch axis in front.

    Raises:
        ImageError: a picture cannot be read.
    """
    loader: DataLoader[Sample | Lare2Error] = DataLoader(
        _Caught(samples),
        batch_sampler=[list(batch) for batch in chosen],
        collate_fn=_collated,
        num_workers=workers,
        # Of its own: creating an iterator draws from torch's global generator, which a resume must find untouched.
        generator=torch.Generator().manual_seed(0),
    )
    for batch in loader:
        if isinstance(batch, Lare2Error):
            raise batch
        yield batch


def shards(order: Sequence[int], batch: int, *, rank: int, world: int) -> list[list[int]]:
    """Cut an epoch's order into batches over all processes and return this one's share of each.

    With several processes, whose number must divide ``batch``, the last batch is filled up from the front, so that all
    have the same number of images: their gradients are averaged with equal weight.
    """
    numbers = list(order)
    cut = [numbers[start : start + batch] for start in range(0, len(numbers), batch)]
    if world > 1:
        short = -len(cut[-1]) % world
        cut[-1] = cut[-1] + (numbers * (1 + short // len(numbers)))[:short]
    return [whole[rank::world] for whole in cut]


def training_view(
    item: Item, options: TrainOptions, epoch: int, *, policy: Preprocessing, image_size: int, crop_size: int
) -> Pixels:
    """Return both branches' pixels of one image in one epoch; the same arguments give the same pixels."""
    content = read_checked(item)
    if options.fixed_view:
        return preprocess(content, policy, image_size=image_size, crop_size=crop_size)
    random = generator(options.seed, "view", epoch, item.sha256)

    def change(image: Image.Image, key: bytes) -> Image.Image:
        if options.augment == "strong":
            image = strong(image, random, key)
        return cut(image, random, crop_size) if options.crop == "random" else image

    view = corrupt(content, Corruption("view", "view", "a training view", change), policy=policy, key=item.sha256)
    pixels = preprocess(view, policy, image_size=image_size, crop_size=crop_size)
    if options.crop == "official":
        window = preprocess(cut(view, random, crop_size), policy, image_size=image_size, crop_size=crop_size)
        return Pixels(pixels.image, window.crop)
    return pixels


def cut(image: Image.Image, random: np.random.Generator, size: int) -> Image.Image:
    """Return the largest part of the picture whose centre window of ``size`` pixels is a random one of the picture.

    The runtime takes the map of a whole picture with its centre window; of this part it would take this window.
    """
    box = []
    for length in image.size:
        start = int(random.integers(length - size + 1)) if length > size else 0
        margin = min(start, length - size - start) if length > size else 0
        box.append((start - margin, start + size + margin) if length > size else (0, length))
    (left, right), (upper, lower) = box
    return image.crop((left, upper, right, lower))


def strong(image: Image.Image, random: np.random.Generator, key: bytes) -> Image.Image:
    """The official strong augmentation, on the whole picture: one of four damages, a quarter turn, a flip.

    Source: the training pipeline of the official ``test.py`` (method.md 3.2): probabilities 0.5, 0.33, 0.33.
    """
    if random.random() < 0.5:
        kind = int(random.integers(4))
        if kind == 0:
            image = jpeg(image, int(random.integers(50, 96)))
        elif kind == 1:
            kernel = int(random.choice((3, 5, 7)))
            image = blur(image, 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8)  # OpenCV's width for a kernel size
        elif kind == 2:
            sigma = math.sqrt(random.uniform(3, 10))
            image = noise(image, sigma, key + random.bytes(16))
        else:
            image = image.convert("L").convert("RGB")
    if random.random() < 0.33:
        turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        turn = turns[int(random.integers(4))]
        image = image if turn is None else image.transpose(turn)
    if random.random() < 0.33:
        axis = int(random.integers(3))
        image = ImageOps.mirror(image) if axis != 0 else image
        image = ImageOps.flip(image) if axis != 1 else image
    return image
