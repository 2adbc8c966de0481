"""The networks of a run: what is trained, what is frozen, and how LaRE comes about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lare2_rt.bundle.noise import Noise

from ..clip_backbone import ClipBackbone, ClipConfig, ClipFeatures
from ..egre import Egre, EgreConfig
from ..lare import LareExtractor
from .data import seed_torch
from .dataset import Sample
from .options import TrainOptions


class Trainee(nn.Module):
    """What one optimiser moves: the head and, unless it is frozen, CLIP's visual tower."""

    def __init__(self, egre: Egre, clip: ClipBackbone | None) -> None:
        super().__init__()
        self.egre = egre
        self.clip = clip

    def forward(
        self, lare: Tensor, crop: Tensor | None = None, embedding: Tensor | None = None, layer3: Tensor | None = None
    ) -> Tensor:
        """Return logits [B,2] from LaRE [B,c,h,w] and either uint8 windows [B,C,C,3] or CLIP's features."""
        if crop is not None:
            assert self.clip is not None
            embedding, layer3 = self.clip(crop)
        assert embedding is not None
        assert layer3 is not None
        logits: Tensor = self.egre(lare, embedding, layer3).logits
        return logits


@dataclass(frozen=True, slots=True)
class Networks:
    """All networks of a run.

    Attributes:
        trainee: what is trained; frozen: CLIP where it is not part of that; extractor: where LaRE is computed.
        noise: the bundle's draws.
    """

    trainee: Trainee
    frozen: ClipBackbone | None
    extractor: LareExtractor | None
    noise: Noise

    @torch.no_grad()
    def inputs(self, batch: Sample, device: torch.device) -> dict[str, Tensor]:
        """Return the trainee's arguments for a batch: LaRE and windows or features, on the device."""
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if name != "label"}
        lare = moved.get("lare")
        if lare is None:
            lare = self._lare(moved["image"], moved.get("noise"))
        if "embedding" in moved:
            return {"lare": lare, "embedding": moved["embedding"], "layer3": moved["layer3"]}
        if self.frozen is None:
            return {"lare": lare, "crop": moved["crop"]}
        features: ClipFeatures = self.frozen(moved["crop"])
        return {"lare": lare, "embedding": features.embedding, "layer3": features.layer3}

    def _lare(self, image: Tensor, noise: Tensor | None) -> Tensor:
        assert self.extractor is not None
        if noise is None:
            posterior, ensemble = (
                torch.from_numpy(part).to(image.device) for part in (self.noise.posterior, self.noise.ensemble)
            )
            shared: Tensor = self.extractor(image, posterior, ensemble).lare
            return shared
        each = [self.extractor(image[row : row + 1], noise[row, :1], noise[row, 1:]).lare for row in range(len(image))]
        return torch.cat(each)


def head_config(base: EgreConfig, clip: ClipConfig, options: TrainOptions, *, own_clip: bool) -> EgreConfig:
    """Return the head's sizes: the official ones, or those of the model folder's own head on its own CLIP."""
    sizes = base if own_clip else EgreConfig(lare_channels=base.lare_channels)
    return replace(
        sizes,
        head=options.head,
        channels=clip.channels,
        embedding=clip.embedding,
        grid=clip.grid,
        dropout=options.dropout,
        heads=8 if options.head == "v7" else sizes.heads,  # a V7 file does not tell its heads, and readers take 8
    )


def new_head(config: EgreConfig, seed: int) -> Egre:
    """Return a head with its initial weights: torch's own, and CLIP's for the positional embedding."""
    seed_torch(seed, "initial weights")
    head = Egre(config)
    # CLIP's attention pool, whose layers ESR repeats, starts with N(0, 1/width); zeros would start all places alike.
    nn.init.normal_(head.esr.positional_embedding, std=config.channels**-0.5)
    return head


def freeze(module: nn.Module) -> None:
    """Put a module into evaluation mode for good and take its weights out of training."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
