"""Batches: pixels, LaRE maps or the noise to compute them with, and labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from lare2_rt.bundle.manifest import Method
from lare2_rt.errors import Lare2Error
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.tools.features.reader import Features

from .clip_cache import ClipCache
from .data import Part
from .options import TrainOptions
from .randomness import generator
from .views import training_view

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
