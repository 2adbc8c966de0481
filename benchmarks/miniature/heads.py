"""The networks of the ablation: the trunk in CLIP's geometry, the paper's inputs one by one, and their training."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.miniature.protocol import PICTURE, Protocol
from benchmarks.miniature.vae import Say, cosine, descend
from lare2_ref.clip_backbone import ClipBackbone, ClipConfig, build_visual
from lare2_ref.egre import Ecr, Egre, EgreConfig, Esr
from lare2_ref.mini import CLIP, EGRE

# The shipped tower at the miniature's picture size, so that nothing is padded: a grid of 8 instead of 14.
TOWER = ClipConfig(CLIP.layers, CLIP.width, CLIP.embedding, PICTURE)
HEAD = replace(EGRE, grid=TOWER.grid)
_RATE = 2e-3
_BOUND = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Inputs of heads.

    Attributes:
        pixels: uint8 [N,128,128,3]; lare: float32 [N,4,32,32], divided by its mean over the training pictures.
        label: int64 [N], 1 = generated; group: int64 [N].
    """

    pixels: Tensor
    lare: Tensor
    label: Tensor
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a frozen trunk says of pictures and of their mirror images: [2,N,D] and [2,N,C,g,g]."""

    embedding: Tensor
    layer3: Tensor


class LareNet(nn.Module):
    """A small convolutional network on the map alone; the paper uses a ResNet-20. [N,4,32,32] -> [N,64]."""

    width = 64

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv(4, 32), _conv(32, 32), _conv(32, 64, 2), _conv(64, 64))

    def forward(self, lare: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.layers(lare).mean((2, 3))
        return out


class Head(nn.Module):
    """One variant: which inputs reach the classifier, and how.

    ``image``: the embedding; ``lare``: a network on the map; ``concat``: both side by side; ``esr``, ``ecr``: the
    embedding with one half of EGRE; ``egre``: head V6, all of it; ``egre-v7``: head V7.
    """

    def __init__(self, variant: str, config: EgreConfig = HEAD) -> None:
        super().__init__()
        self.variant = variant
        self.needs_image = variant != "lare"
        width = config.embedding if self.needs_image else 0
        if variant in ("egre", "egre-v7"):
            self.egre = Egre(replace(config, head="v7" if variant == "egre-v7" else "v6"))
            return
        if variant in ("lare", "concat"):
            self.lare = LareNet()
            width += LareNet.width
        elif variant == "esr":
            self.esr = Esr(config)
            width += config.channels
        elif variant == "ecr":
            self.ecr = Ecr(config)
            width += config.channels
        self.classifier = nn.Linear(width, 2)

    def forward(self, lare: Tensor, embedding: Tensor | None, layer3: Tensor | None) -> Tensor:
        """Return logits [N,2]."""
        out: Tensor
        if self.variant in ("egre", "egre-v7"):
            out = self.egre(lare, embedding, layer3).logits
            return out
        inputs = [embedding] if embedding is not None and self.needs_image else []
        if self.variant in ("lare", "concat"):
            inputs.append(self.lare(lare))
        elif self.variant == "esr":
            inputs.append(self.esr(lare, layer3)[0])
        elif self.variant == "ecr":
            inputs.append(self.ecr(lare, layer3))
        out = self.classifier(torch.cat(inputs, dim=1))
        return out


class Classifier(nn.Module):
    """A head with a trunk of its own, or without one where the trunk is frozen or not needed."""

    def __init__(self, head: Head, trunk: ClipBackbone | None) -> None:
        super().__init__()
        self.head, self.trunk = head, trunk

    def forward(self, lare: Tensor, pixels: Tensor, features: tuple[Tensor, Tensor] | None) -> Tensor:
        """Return logits [N,2]."""
        if features is None and self.trunk is not None and self.head.needs_image:
            features = self.trunk(pixels)
        embedding, layer3 = features if features is not None else (None, None)
        logits: Tensor = self.head(lare, embedding, layer3)
        return logits


def new_trunk(seed: int, config: ClipConfig = TOWER) -> ClipBackbone:
    """Return the tower with open_clip's initial weights from a seed."""
    torch.manual_seed(seed)
    return ClipBackbone(build_visual(config))


def pretrain(
    trunk: ClipBackbone, pixels: NDArray[np.uint8], photo: NDArray[np.int64], protocol: Protocol, say: Say
) -> float:
    """Teach the trunk to tell photographs apart, in place: from which of them a piece was cut.

    No picture of these photographs is ever judged. Colours are shifted, so that they do not give the answer away.
    Returns the share of right answers over the last fifty steps.
    """
    steps, batch = protocol.pretrain_steps, protocol.pretrain_batch
    torch.manual_seed(protocol.seed)
    names = np.unique(photo)
    label = torch.from_numpy(np.searchsorted(names, photo))
    last = nn.Linear(trunk.visual.output_dim, len(names))
    both = nn.ModuleList([trunk, last]).train()
    optimiser = torch.optim.AdamW(both.parameters(), lr=_RATE, weight_decay=1e-2)
    right: list[float] = []
    for step in range(steps):
        cosine(optimiser, _RATE, step, steps, warm=20)
        chosen = torch.randint(0, len(label), (batch,))
        image = trunk.normalise(torch.from_numpy(pixels[chosen.numpy()]))
        image = image * (0.7 + 0.6 * torch.rand(batch, 3, 1, 1)) + 0.5 * torch.randn(batch, 3, 1, 1)
        image = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, image.flip(3), image)
        logits = last(trunk.features(image).embedding)
        loss = F.cross_entropy(logits, label[chosen])
        descend(optimiser, both, loss, bound=_BOUND)
        right.append(float((logits.argmax(1) == label[chosen]).float().mean()))
        if step % 100 == 0:
            say(f"trunk: step {step} of {steps}, loss {loss.item():.3f}, right {np.mean(right[-50:]):.2f}")
    trunk.eval()
    return float(np.mean(right[-50:]))


@torch.no_grad()
def features_of(trunk: ClipBackbone, pixels: Tensor) -> Features:
    """Return a frozen trunk's features of pictures and of their mirror images."""
    trunk.eval()
    halves = []
    for mirrored in (False, True):
        given = pixels.flip(2) if mirrored else pixels
        parts = [trunk(given[k : k + 64]) for k in range(0, len(given), 64)]
        halves.append([torch.cat(part) for part in zip(*parts, strict=True)])
    return Features(torch.stack([h[0] for h in halves]), torch.stack([h[1] for h in halves]))


def train_head(
    classifier: Classifier, examples: Examples, features: Features | None,
    *, epochs: int, batch: int, seed: int, rate: float = _RATE,
) -> None:  # fmt: skip
    """Train in place: cross entropy, AdamW with a cosine, mirror images of picture and map together."""
    torch.manual_seed(seed)
    classifier.train()
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=rate, weight_decay=1e-2)
    steps, step = epochs * (len(examples) // batch), 0
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(examples)), batch):
            if len(chosen) < batch:
                break
            cosine(optimiser, rate, step, steps, warm=20)
            mirrored = torch.rand(len(chosen)) < 0.5
            lare = _mirror(examples.lare[chosen], mirrored, 3)
            given = None
            if features is not None:
                given = (features.embedding[mirrored.long(), chosen], features.layer3[mirrored.long(), chosen])
            logits = classifier(lare, _mirror(examples.pixels[chosen], mirrored, 2), given)
            descend(optimiser, classifier, F.cross_entropy(logits, examples.label[chosen]), bound=_BOUND)
            step += 1
    classifier.eval()


@torch.no_grad()
def scores(classifier: Classifier, examples: Examples, features: Features | None) -> NDArray[np.float64]:
    """Return logit(generated) − logit(real), float64 [N]."""
    classifier.eval()
    out = []
    for k in range(0, len(examples), 128):
        part = slice(k, k + 128)
        given = None if features is None else (features.embedding[0, part], features.layer3[0, part])
        logits = classifier(examples.lare[part], examples.pixels[part], given)
        out.append((logits[:, 1] - logits[:, 0]).double().numpy())
    return np.concatenate(out)


def parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _mirror(given: Tensor, mirrored: Tensor, axis: int) -> Tensor:
    return torch.where(mirrored.view(-1, 1, 1, 1), given.flip(axis), given)


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
