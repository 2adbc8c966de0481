"""Trains every variant of the ablation and keeps its scores; nothing is decided here."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks.common.kept import keep_file
from benchmarks.miniature.heads import (
    Classifier,
    Examples,
    Features,
    Head,
    features_of,
    new_trunk,
    pretrain,
    scores,
    train_head,
)
from benchmarks.miniature.protocol import GENERATORS, SEEN, TRUNKS, VARIANTS
from benchmarks.miniature.stages import Sets, Work
from lare2_ref.clip_backbone import ClipBackbone

REAL = "roundtrip"  # the fair task: both classes went through the decoder
_PRETRAIN_ROUNDTRIPS = 0.5


def examples(sets: Sets, names: tuple[str, ...], scale: float) -> Examples:
    """Put sets together; those that are generated are labelled 1."""
    label = [int(name in GENERATORS) for name in names for _ in range(len(sets.photo))]
    return Examples(
        torch.from_numpy(np.concatenate([sets.pictures[name] for name in names])),
        torch.from_numpy(np.concatenate([sets.lare[name] for name in names])) / scale,
        torch.tensor(label),
        np.concatenate([sets.group] * len(names)),
    )


def scale_of(train: Sets) -> float:
    """Mean LaRE of the training pictures, by which maps are divided."""
    return float(np.mean([train.lare[REAL].mean(), train.lare[SEEN].mean()]))


def pretrained_trunk(work: Work) -> ClipBackbone:
    """Return the trunk that has learned to tell the diffusion model's photographs apart."""
    file = work.path("trunk.safetensors")
    trunk = new_trunk(work.protocol.seed)
    if not file.exists():
        pictures = work.cut("diffusion")
        some = np.random.Generator(np.random.Philox(work.protocol.seed)).permutation(len(pictures.pixels))[:4000]
        pixels, photo = pictures.pixels[some].copy(), pictures.photo[some]
        # Half of them as the decoder shows them, since those are what heads will judge.
        count = int(len(pixels) * _PRETRAIN_ROUNDTRIPS)
        pixels[:count] = work.round_trip(pixels[:count])
        right = pretrain(trunk, pixels, photo, work.protocol, work.say)
        work.note("trunk.json", {"right": right, "photographs": len(set(photo.tolist()))})
        keep_file(file, partial(save_file, trunk.visual.state_dict()))
    trunk.visual.load_state_dict(load_file(file))
    return trunk.eval()


def ablation(work: Work) -> dict[str, NDArray[np.float64]]:
    """Return ``trunk/variant/seed/set`` -> scores of the test pictures of that set (``validation-`` before the set for
    the validation pictures); trained on what is missing.
    """
    found: dict[str, NDArray[np.float64]] = {}
    for trunk in TRUNKS:
        for variant in VARIANTS:
            if variant == "lare" and trunk != TRUNKS[0]:
                continue  # has no trunk
            for seed in work.protocol.seeds:
                train = partial(_train_one, work, trunk, variant, seed)
                scored = work.arrays(f"scores-{trunk}-{variant}-{seed}.npz", train)
                found.update({f"{trunk}/{variant}/{seed}/{name}": values for name, values in scored.items()})
    return found


def _train_one(work: Work, trunk_name: str, variant: str, seed: int) -> dict[str, NDArray[np.float64]]:
    train = work.sets("train")
    scale = scale_of(train)
    torch.manual_seed(seed)
    head = Head(variant)
    given = examples(train, (REAL, SEEN), scale)
    frozen = trunk_name == "pretrained"
    trunk = None if frozen or not head.needs_image else new_trunk(seed)
    classifier = Classifier(head, trunk)
    features = frozen_features(work, "train", (REAL, SEEN)) if frozen and head.needs_image else None
    train_head(classifier, given, features, epochs=work.protocol.epochs, batch=work.protocol.batch, seed=seed)
    kept: dict[str, NDArray[np.float64]] = {}
    for split, prefix in (("test", ""), ("validation", "validation-")):
        sets = work.sets(split)
        for name in sets.pictures:
            some = frozen_features(work, split, (name,)) if features is not None else None
            kept[prefix + name] = scores(classifier, examples(sets, (name,), scale), some)
    work.say(f"head {variant}, trunk {trunk_name}, seed {seed}")
    return kept


def frozen_features(work: Work, split: str, names: tuple[str, ...]) -> Features:
    """Return the pretrained trunk's features of sets, one behind the other; computed once a run."""
    parts = []
    for name in names:
        key = (split, name)
        if key not in work.features:
            pixels = torch.from_numpy(work.sets(split).pictures[name])
            work.features[key] = features_of(pretrained_trunk(work), pixels)
        parts.append(work.features[key])
    return Features(torch.cat([p.embedding for p in parts], 1), torch.cat([p.layer3 for p in parts], 1))
