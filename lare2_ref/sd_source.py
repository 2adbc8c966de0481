"""Where a Stable Diffusion comes from: a folder in diffusers layout, local or downloaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from lare2_rt.errors import first_line
from lare2_rt.integrity import HashCache

from .checkpoints import SourceError, folder_sha256, read_json, weights_variant
from .lare import encode_prompt

_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
_HUB_PATTERNS = tuple(f"{part}/{pattern}" for part in _PARTS for pattern in ("*.json", "*.txt", "*.safetensors"))


class SdSource(Protocol):
    """The parts of a Stable Diffusion, each loaded anew on every call."""

    @property
    def name(self) -> str:
        """How manifests call it."""

    @property
    def licence(self) -> str:
        """Its licence, for manifests."""

    @property
    def revision(self) -> str | None:
        """Revision of a hub repository."""

    def scheduler(self) -> DDPMScheduler:
        """Return the noise schedule."""

    def vae_config(self) -> dict[str, Any]:
        """Return the autoencoder's configuration."""

    def unet_config(self) -> dict[str, Any]:
        """Return the noise-prediction network's configuration."""

    def prompt_tokens(self) -> int:
        """Return the number of tokens of a prompt embedding."""

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder in float32."""

    def unet(self) -> UNet2DConditionModel:
        """Return the noise-prediction network in float32."""

    def prompt_embeds(self, prompt: str) -> Tensor:
        """Encode a prompt: float32 [1,tokens,width]."""

    def hashes(self, cache: HashCache) -> dict[str, str]:
        """Return sha256 by role: vae, unet, scheduler, text_encoder."""


@dataclass(frozen=True, slots=True)
class SdFolder:
    """A folder as diffusers writes it; safetensors only."""

    folder: Path
    name: str
    licence: str
    revision: str | None = None

    def scheduler(self) -> DDPMScheduler:
        """See ``SdSource``; DDPM, whatever sampler the folder names, because only the schedule matters."""
        return DDPMScheduler.from_pretrained(self._part("scheduler"))

    def vae_config(self) -> dict[str, Any]:
        """See ``SdSource``; diffusers' defaults are filled in."""
        return {"latent_channels": 4, "scaling_factor": 0.18215, **AutoencoderKL.load_config(self._part("vae"))}

    def unet_config(self) -> dict[str, Any]:
        """See ``SdSource``."""
        return dict(UNet2DConditionModel.load_config(self._part("unet")))

    def prompt_tokens(self) -> int:
        """See ``SdSource``."""
        return int(read_json(self._part("text_encoder") / "config.json").get("max_position_embeddings", 77))

    def vae(self) -> AutoencoderKL:
        """See ``SdSource``."""
        return _pretrained(AutoencoderKL, self._part("vae"))

    def unet(self) -> UNet2DConditionModel:
        """See ``SdSource``."""
        return _pretrained(UNet2DConditionModel, self._part("unet"))

    def prompt_embeds(self, prompt: str) -> Tensor:
        """See ``SdSource``."""
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = self._part("text_encoder")
        variant = weights_variant(folder, "model")
        try:
            tokenizer = CLIPTokenizer.from_pretrained(self._part("tokenizer"))
            encoder, info = CLIPTextModel.from_pretrained(
                folder, dtype=torch.float32, variant=variant, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # safetensors and transformers each have their own
            raise SourceError(f"{folder} cannot be loaded ({first_line(error)}); download it again") from error
        _refuse_misfits(folder, info)
        return encode_prompt(tokenizer, encoder.eval(), prompt)

    def hashes(self, cache: HashCache) -> dict[str, str]:
        """See ``SdSource``."""
        hashes = {role: folder_sha256(self._part(role), cache) for role in ("vae", "unet", "scheduler")}
        # The tokenizer decides the prompt's embedding as much as the encoder does.
        parts = (folder_sha256(self._part(part), cache) for part in ("text_encoder", "tokenizer"))
        return {**hashes, "text_encoder": hashlib.sha256(" ".join(parts).encode()).hexdigest()}

    def _part(self, name: str) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            raise SourceError(f"{self.folder} has no folder {name!r}; give a Stable Diffusion in diffusers layout")
        return folder


def find_stable_diffusion(location: str, *, revision: str | None = None, offline: bool = False) -> SdFolder:
    """Return a local folder, or download a hub repository (safetensors, configurations and tokenizer only).

    Raises:
        SourceError: neither a folder nor a repository that can be had.
    """
    licence = "as stated by the source; Stable Diffusion 1.x and 2.x: CreativeML OpenRAIL-M"
    folder = Path(location)
    if folder.is_dir():
        return SdFolder(folder, folder.name, licence)
    if location.startswith("runwayml/"):
        raise SourceError(f"{location} was withdrawn; use stable-diffusion-v1-5/stable-diffusion-v1-5")
    from huggingface_hub import snapshot_download

    patterns = list(_HUB_PATTERNS)
    try:
        path = snapshot_download(location, revision=revision, allow_patterns=patterns, local_files_only=offline)
    except Exception as error:  # the hub client has many error types, all meaning the same here
        raise SourceError(
            f"{location} is neither a folder nor a model that can be downloaded ({first_line(error)}); check the "
            "name, or download it elsewhere and give the folder"
        ) from error
    return SdFolder(Path(path), location, licence, revision)


def _pretrained(kind: Any, folder: Path) -> Any:  # noqa: ANN401 - diffusers' loaders are untyped
    """Load a diffusers network in float32 from its folder, whichever precision the file has; strictly."""
    variant = weights_variant(folder, "diffusion_pytorch_model")
    try:
        network, info = kind.from_pretrained(
            folder, torch_dtype=torch.float32, variant=variant, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # safetensors and diffusers each have their own
        raise SourceError(f"{folder} cannot be loaded ({first_line(error)}); download it again") from error
    _refuse_misfits(folder, info)
    return network.eval()


def _refuse_misfits(folder: Path, info: dict[str, Any]) -> None:
    """Name the first key that does not fit: the libraries would fill a missing one with random numbers."""
    for misfit in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # Older text encoders store the positions 0, 1, 2, …, which are no weight.
        keys = sorted(str(key) for key in info.get(misfit) or () if not str(key).endswith("position_ids"))
        if keys:
            raise SourceError(f"{folder} has {misfit.replace('_', ' ')}: {keys[0]}; download it again")
