"""From the miniature's networks to the model folder ``mini``: the tower at its shipped size, heads, the card."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.miniature.ablation import REAL, pretrained_trunk, scale_of
from benchmarks.miniature.heads import Classifier, Examples, Features, Head, features_of, scores, train_head
from benchmarks.miniature.protocol import SEEN
from benchmarks.miniature.stages import Sets, Work
from benchmarks.miniature.stats import auc
from lare2_ref.clip_backbone import ClipBackbone, build_visual
from lare2_ref.egre import Egre, official_key
from lare2_ref.mini import CLIP, EGRE
from lare2_ref.sources import CARD
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import preprocess

HEADS = ("egre", "egre-v7")
CARD_TEXT = {
    "name": "mini",
    "description": "the method in miniature, trained on {photographs} openly licensed photographs and one toy "
    "generator; for trying the tool, no evidence about any other picture",
    "calibration": "uncalibrated",
    "licence": "CC-BY-SA-4.0; trained on photographs in the public domain or under CC0, CC BY and CC BY-SA, "
    "listed in benchmarks/miniature_photos/photos.csv",
    "synthetic": False,
    "demonstration": True,
}
_CLASSES = (("real", 0), (REAL, 0), (SEEN, 1), (SEEN, 1))  # generated twice: both classes weigh the same


@dataclass(frozen=True, slots=True, eq=False)
class Shipped:
    """The chosen head: ``name`` is v6 or v7, ``validation`` its AUC on validation photographs, by head and seed."""

    name: str
    egre: Egre
    trunk: ClipBackbone
    validation: dict[str, float]


def shipped_tower(work: Work) -> ClipBackbone:
    """Return the pretrained trunk at 224 pixels: its positions are interpolated, everything else is the same."""
    small = pretrained_trunk(work)
    visual = build_visual(CLIP)
    state = small.visual.state_dict()
    positions = state["attnpool.positional_embedding"]
    side, target = round((len(positions) - 1) ** 0.5), CLIP.image_size // 32
    grid = positions[1:].T.reshape(1, -1, side, side)
    larger = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    state["attnpool.positional_embedding"] = torch.cat([positions[:1], larger.flatten(2)[0].T])
    visual.load_state_dict(state)
    # Weights are stored in half precision, so what is judged here is what is shipped.
    return ClipBackbone(visual.half().float()).eval()


def windows(pixels: NDArray[np.uint8], *, doubled: bool) -> Tensor:
    """Return the runtime's CLIP windows, uint8 [N,224,224,3], of pictures as they are or doubled in size."""
    out = []
    for picture in pixels:
        image = Image.fromarray(picture)
        if doubled:
            image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
        out.append(preprocess(image, Preprocessing()).crop)
    return torch.from_numpy(np.stack(out))


def train_shipped(work: Work) -> Shipped:
    """Train both heads with every seed on a frozen tower and keep the best on the validation photographs.

    Real pictures are photographs and their round trips; every picture is seen in both sizes, so that neither blur nor
    size is the answer.
    """
    tower = shipped_tower(work)
    train, validation = work.sets("train"), work.sets("validation")
    scale = scale_of(train)
    learned, held = _examples(train, scale), _examples(validation, scale)
    given, held_features = _features(work, tower, "train", train), _features(work, tower, "validation", validation)
    best: tuple[float, str, Head] | None = None
    validated: dict[str, float] = {}
    for name in HEADS:
        for seed in work.protocol.seeds:
            torch.manual_seed(seed)
            head = Head(name, EGRE)
            classifier = Classifier(head, None)
            train_head(classifier, learned, given, epochs=work.protocol.epochs, batch=work.protocol.batch, seed=seed)
            values = scores(classifier, held, held_features)
            label = held.label.numpy()
            area = auc(values[label == 0], values[label == 1])
            validated[f"{name} {seed}"] = area
            work.say(f"shipped head {name}, seed {seed}: validation AUC {area:.3f}")
            if best is None or area > best[0]:
                best = (area, name, head)
    assert best is not None
    egre = _without_scale(best[2].egre, scale)
    return Shipped("v7" if best[1] == "egre-v7" else "v6", egre, tower, validated)


def _without_scale(egre: Egre, scale: float) -> Egre:
    """Fold the division of LaRE by its mean into the layers that read it, which are linear in it."""
    with torch.no_grad():
        reader = egre.esr.bias if egre.config.head == "v6" else egre.esr.lare_tokens
        assert isinstance(reader, nn.Conv2d)
        reader.weight /= scale
        gate = egre.ecr.gate[0]
        assert isinstance(gate, nn.Linear)
        gate.weight /= scale
    return egre.half().float().eval()


def _examples(sets: Sets, scale: float) -> Examples:
    """Every picture of every class in both sizes; LaRE does not depend on the size."""
    names = [(name, label) for name, label in _CLASSES for _ in range(2)]
    maps = np.concatenate([sets.lare[name] for name, _ in names]) / scale
    label = torch.tensor([label for _, label in names for _ in range(len(sets.photo))])
    nothing = torch.zeros(len(maps), 1, 1, 3, dtype=torch.uint8)
    return Examples(nothing, torch.from_numpy(maps), label, np.concatenate([sets.group] * len(names)))


def _features(work: Work, tower: ClipBackbone, split: str, sets: Sets) -> Features:
    parts = {}
    for name in dict(_CLASSES):
        for doubled in (False, True):
            parts[name, doubled] = features_of(tower, windows(sets.pictures[name], doubled=doubled))
        work.say(f"shipped tower on {split}, {name}")
    chosen = [parts[name, doubled] for name, _ in _CLASSES for doubled in (False, True)]
    return Features(torch.cat([p.embedding for p in chosen], 1), torch.cat([p.layer3 for p in chosen], 1))


def write_model(work: Work, base: Path, out: Path) -> Shipped:
    """Write the model folder: prompt encoder, tokenizer and schedule of ``base``, everything else trained here.

    The VAE has no decoder: LaRE never decodes. ``out`` must not exist.
    """
    shipped = train_shipped(work)
    for part in ("text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(base / part, out / part)
    vae, _ = work.autoencoder
    vae.half().save_pretrained(out / "vae", variant="fp16")
    vae.float()
    work.unet.half().save_pretrained(out / "unet", variant="fp16")
    work.unet.float()
    config = replace(shipped.egre.config, head="v7" if shipped.name == "v7" else "v6")
    _write(out / "clip", CLIP.as_dict(), shipped.trunk.visual.half().state_dict())
    head = {official_key(config.head, key): value for key, value in shipped.egre.half().state_dict().items()}
    _write(out / "egre", config.as_dict(), head)
    # From the other splits no weight was learned: they choose, calibrate and judge.
    learned = sum(len(np.unique(work.cut(split).photo)) for split in ("diffusion", "train"))
    card = {**CARD_TEXT, "description": str(CARD_TEXT["description"]).format(photographs=learned)}
    (out / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return shipped


def _write(folder: Path, config: dict[str, object], state: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
