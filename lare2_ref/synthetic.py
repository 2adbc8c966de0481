"""Seeded random weights of the exact SD 1.5, CLIP RN50 and V6 geometry: size and cost of the real thing, not its eye.

Stable Diffusion and CLIP may not be at hand where exports, engines and speed are worked on. These stand in for them:
every matrix is N(0, 1/fan_in) and every norm near 1, so activations stay where a trained network's are, and outputs
follow the input.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from lare2_rt.host.integrity import HashCache

from .checkpoints import SourceError
from .clip_backbone import ClipBackbone, ClipConfig, build_visual
from .egre import Egre, EgreConfig
from .mini import SCHEDULE, seed_weights
from .sources import ModelSources

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
}
_LICENCE = "Apache-2.0"


def _digest(role: str, seed: int) -> str:
    """Identity of weights that are never written to a file: what they are drawn from."""
    return hashlib.sha256(f"lare2 synthetic sd15 {role} seed {seed} numpy {np.__version__}".encode()).hexdigest()


def _seeded(kind: Any, config: dict[str, Any], name: str, seed: int) -> Any:  # noqa: ANN401 - diffusers is untyped
    """Build a network without the library's own initialisation, which takes longer than the export."""
    with torch.device("meta"):
        network = kind(**config)
    network.to_empty(device="cpu")
    seed_weights(network, name, seed)
    return network.eval()


@dataclass(frozen=True, slots=True)
class SyntheticSd15:
    """``SdSource`` of SD 1.5's geometry; the prompt embedding is drawn from the prompt's text."""

    seed: int = 0
    name: str = "synthetic-sd15"
    licence: str = _LICENCE
    revision: str | None = None

    def scheduler(self) -> DDPMScheduler:
        """See ``SdSource``."""
        return DDPMScheduler(**SCHEDULE, prediction_type="epsilon")

    def vae_config(self) -> dict[str, Any]:
        """See ``SdSource``."""
        return dict(VAE)

    def unet_config(self) -> dict[str, Any]:
        """See ``SdSource``."""
        return dict(UNET)

    def prompt_tokens(self) -> int:
        """See ``SdSource``."""
        return 77

    def vae(self) -> AutoencoderKL:
        """See ``SdSource``."""
        return _seeded(AutoencoderKL, VAE, "vae", self.seed)

    def unet(self) -> UNet2DConditionModel:
        """See ``SdSource``."""
        return _seeded(UNet2DConditionModel, UNET, "unet", self.seed)

    def prompt_embeds(self, prompt: str) -> Tensor:
        """See ``SdSource``; standard normal, as a text encoder's final LayerNorm gives."""
        generator = np.random.Generator(np.random.Philox(key=[zlib.crc32(prompt.encode()), self.seed]))
        shape = (1, self.prompt_tokens(), int(self.unet_config()["cross_attention_dim"]))
        return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))

    def hashes(self, cache: HashCache) -> dict[str, str]:
        """See ``SdSource``."""
        return {role: _digest(role, self.seed) for role in ("vae", "unet", "scheduler", "text_encoder")}


@dataclass(frozen=True, slots=True)
class SyntheticClip:
    """``ClipSource`` of RN50's geometry."""

    seed: int = 0
    name: str = "synthetic-rn50"
    licence: str = _LICENCE

    def config(self) -> ClipConfig:
        """See ``ClipSource``."""
        return ClipConfig()

    def backbone(self) -> ClipBackbone:
        """See ``ClipSource``."""
        visual = build_visual(self.config())
        seed_weights(visual, "clip", self.seed)
        return ClipBackbone(visual).eval()

    def sha256(self, cache: HashCache) -> str:
        """See ``ClipSource``."""
        return _digest("clip", self.seed)


@dataclass(frozen=True, slots=True)
class SyntheticHead:
    """``HeadSource`` of V6's geometry."""

    seed: int = 0
    name: str = "synthetic-v6"
    licence: str = _LICENCE

    def config(self) -> EgreConfig:
        """See ``HeadSource``."""
        return EgreConfig()

    def head(self) -> Egre:
        """See ``HeadSource``."""
        head: nn.Module = Egre(self.config())
        seed_weights(head, "egre", self.seed)
        assert isinstance(head, Egre)
        return head.eval()

    def sha256(self, cache: HashCache) -> str:
        """See ``HeadSource``."""
        return _digest("head", self.seed)


def synthetic(kind: str, *, seed: int = 0) -> ModelSources:
    """Return synthetic sources; the only kind is ``sd15``. Raises SourceError for another."""
    if kind != "sd15":
        raise SourceError(f"there are no synthetic weights {kind!r}", remedy="choose sd15")
    return ModelSources(
        sd=SyntheticSd15(seed),
        clip=SyntheticClip(seed),
        head=SyntheticHead(seed),
        name="synthetic-sd15",
        description="seeded random weights of SD 1.5 + RN50 + V6 geometry; for measuring, cannot judge an image",
        calibration="untrained",
        synthetic=True,
    )
