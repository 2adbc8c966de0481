"""The CLIP branch: open_clip's ResNet giving the attention-pooled embedding and the layer3 features."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

# The official test.py normalises with ImageNet's statistics, not with CLIP's (method.md 3.2).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_HEAD_WIDTH = 64


@dataclass(frozen=True, slots=True)
class ClipConfig:
    """Geometry of the visual tower; the defaults are CLIP RN50's."""

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    embedding: int = 1024
    image_size: int = 224

    @property
    def channels(self) -> int:
        """Channels of layer3."""
        return self.width * 16

    @property
    def grid(self) -> int:
        """Side of the layer3 feature map."""
        return self.image_size // 16

    def as_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)


class ClipFeatures(NamedTuple):
    """Attributes: embedding [B,D], not normalised; layer3 [B,C,grid,grid]."""

    embedding: Tensor
    layer3: Tensor


def build_visual(config: ClipConfig) -> ModifiedResNet:
    """Return open_clip's ResNet of this geometry with its initial weights."""
    heads = config.width * 32 // _HEAD_WIDTH
    return ModifiedResNet(list(config.layers), config.embedding, heads, config.image_size, config.width)


class ClipBackbone(nn.Module):
    """Wraps the visual tower: uint8 pixels in, both features out."""

    mean: Tensor
    std: Tensor

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def normalise(self, crop: Tensor) -> Tensor:
        """uint8 [B,S,S,3] RGB -> float [B,3,S,S] with ImageNet statistics."""
        return (crop.to(self.mean.dtype).permute(0, 3, 1, 2) / 255 - self.mean) / self.std

    def features(self, image: Tensor) -> ClipFeatures:
        """Normalised [B,3,S,S] -> features."""
        visual = self.visual
        layer3 = visual.layer3(visual.layer2(visual.layer1(visual.stem(image))))
        return ClipFeatures(visual.attnpool(visual.layer4(layer3)), layer3)

    def forward(self, crop: Tensor) -> ClipFeatures:
        """uint8 [B,S,S,3] RGB -> features."""
        return self.features(self.normalise(crop))
