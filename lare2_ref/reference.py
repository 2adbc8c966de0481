"""The whole of LaRE² in plain PyTorch: the truth that every export is measured against."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lare2_rt.bundle.noise import Noise
from lare2_rt.detection import DecisionRule, Detection, Provenance, scored
from lare2_rt.pixels.decode import ImageSource, source_name
from lare2_rt.pixels.policy import Preprocessing
from lare2_rt.pixels.preprocess import Pixels, preprocess

from .clip_backbone import ClipBackbone, ClipFeatures
from .egre import Egre, EgreOutput
from .lare import LareExtractor, LareOutput


class ReferenceOutput(NamedTuple):
    """Everything that the chain computes, for parity."""

    lare: LareOutput
    clip: ClipFeatures
    egre: EgreOutput


@dataclass(frozen=True, slots=True)
class Identity:
    """How a reference calls itself in results."""

    name: str
    rule: DecisionRule = field(default_factory=lambda: DecisionRule("uncalibrated"))
    sha256: str = ""


class Lare2Reference(nn.Module):
    """LaRE extractor, CLIP backbone and EGRE head with one noise and one preprocessing policy.

    Args:
        extractor, clip, egre: the three networks; they are put into evaluation mode.
        noise: the draws that every image shares.
        policy: preprocessing policies; image_size: side of the LaRE input in pixels.
        identity: name and decision rule for results.
    """

    def __init__(
        self,
        extractor: LareExtractor,
        clip: ClipBackbone,
        egre: Egre,
        *,
        noise: Noise,
        policy: Preprocessing | None = None,
        image_size: int = 256,
        identity: Identity | None = None,
    ) -> None:
        super().__init__()
        self.extractor, self.clip, self.egre = extractor, clip, egre
        self.noise = noise
        self.policy = policy or Preprocessing()
        self.image_size = image_size
        self.identity = identity or Identity("reference")
        self.eval()

    @property
    def crop_size(self) -> int:
        """Side of the CLIP window in pixels."""
        return int(self.clip.visual.image_size)

    @torch.no_grad()
    def forward(self, image: Tensor, crop: Tensor) -> ReferenceOutput:
        """Run uint8 [B,S,S,3] and [B,C,C,3] RGB through the chain."""
        posterior = torch.from_numpy(self.noise.posterior).to(self.device)
        ensemble = torch.from_numpy(self.noise.ensemble).to(self.device)
        lare = self.extractor(image, posterior, ensemble)
        clip = self.clip(crop)
        return ReferenceOutput(lare, clip, self.egre(lare.lare, clip.embedding, clip.layer3))

    def pixels(self, source: ImageSource) -> Pixels:
        """Decode and prepare one image exactly as the runtime does; raises ImageError."""
        return preprocess(source, self.policy, image_size=self.image_size, crop_size=self.crop_size)

    def predict(self, source: ImageSource) -> Detection:
        """Score one image (path, bytes, file object, Pillow image or uint8 RGB array) as the runtime does.

        Raises:
            ImageError: the image cannot be read or is refused.
        """
        begin = time.perf_counter()
        pixels = self.pixels(source)
        decoded = time.perf_counter()
        image = torch.from_numpy(np.array(pixels.image))[None].to(self.device)
        crop = torch.from_numpy(np.array(pixels.crop))[None].to(self.device)
        output = self(image, crop)
        end = time.perf_counter()
        return scored(
            source_name(source),
            output.egre.logits[0].cpu().numpy(),
            lare=output.lare.lare[0].cpu().numpy(),
            attention=output.egre.attention[0].cpu().numpy(),
            provenance=self.provenance,
            rule=self.identity.rule,
            timings={"decode": (decoded - begin) * 1e3, "total": (end - begin) * 1e3},
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.extractor.prompt_embeds.device

    @property
    def provenance(self) -> Provenance:
        """Who gives the results; ``bundle_id`` is the identity of weights and method."""
        return Provenance(
            bundle_name=self.identity.name,
            bundle_id=self.identity.sha256,
            bundle_path="",
            engine="reference",
            engine_version=f"torch {importlib.metadata.version('torch')}",
            device=str(self.device),
            precision="fp32",
            batch=1,
            threads=torch.get_num_threads(),
            build_key="",
        )
