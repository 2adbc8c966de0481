"""Where the weights come from: a Stable Diffusion in diffusers layout, a CLIP ResNet and an EGRE head, loaded strictly.

A *model folder* holds all three::

    lare2.json                     name, description, calibration, licence
    unet/ vae/ scheduler/ text_encoder/ tokenizer/      as diffusers writes them
    clip/config.json model.safetensors                  ClipConfig and open_clip's visual tower
    egre/config.json model.safetensors                  EgreConfig and a head under the official key names

Each part is loaded on request and never kept, so that an export holds one network at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from lare2_rt.detection import Calibration, DecisionRule
from lare2_rt.integrity import HashCache
from lare2_rt.noise import Noise
from lare2_rt.policy import Preprocessing

from .checkpoints import (
    SourceError,
    folder_sha256,
    load_strictly,
    read_config,
    read_json,
    read_safetensors,
    weights_variant,
)
from .clip_backbone import ClipBackbone, ClipConfig, build_visual
from .egre import Egre, EgreConfig, official_key
from .lare import LareExtractor, encode_prompt
from .reference import Identity, Lare2Reference

CARD = "lare2.json"
Role = Literal["vae", "unet", "scheduler", "text_encoder", "clip", "head"]
_HUB_PATTERNS = tuple(
    f"{part}/{pattern}"
    for part in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
    for pattern in ("*.json", "*.txt", "*.safetensors")
)


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What a manifest says about one set of weights."""

    role: Role
    name: str
    sha256: str
    licence: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class ModelSources:
    """Folders of the three networks.

    Attributes:
        sd: folder in diffusers layout; clip, head: folders with ``config.json`` and ``model.safetensors``.
        names: how each is called in manifests; licences: their licences; both keyed ``sd``, ``clip``, ``head``.
        name, description: of the model as a whole; calibration: whether its verdicts mean anything.
    """

    sd: Path
    clip: Path
    head: Path
    names: dict[str, str]
    licences: dict[str, str]
    name: str
    description: str
    calibration: Calibration
    synthetic: bool = False

    def scheduler(self) -> DDPMScheduler:
        """Return the noise schedule in evaluation order (DDPM, whatever class the folder names)."""
        scheduler: DDPMScheduler = DDPMScheduler.from_pretrained(self._part("scheduler"))
        return scheduler

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder in float32."""
        return _pretrained(AutoencoderKL, self._part("vae"))

    def vae_config(self) -> dict[str, Any]:
        """Return the autoencoder's configuration, with diffusers' defaults filled in."""
        return {"latent_channels": 4, "scaling_factor": 0.18215, **AutoencoderKL.load_config(self._part("vae"))}

    def unet(self) -> UNet2DConditionModel:
        """Return the noise-prediction network in float32."""
        return _pretrained(UNet2DConditionModel, self._part("unet"))

    def prompt_embeds(self, prompt: str) -> Tensor:
        """Encode a prompt: float32 [1,tokens,width]."""
        from transformers import CLIPTextModel, CLIPTokenizer

        tokenizer = CLIPTokenizer.from_pretrained(self._part("tokenizer"))
        folder = self._part("text_encoder")
        encoder = CLIPTextModel.from_pretrained(
            folder, dtype=torch.float32, variant=weights_variant(folder, "model"), use_safetensors=True
        )
        return encode_prompt(tokenizer, encoder.eval(), prompt)

    def clip_config(self) -> ClipConfig:
        """Return the geometry of the CLIP tower."""
        return read_config(ClipConfig, self.clip / "config.json")

    def clip_backbone(self) -> ClipBackbone:
        """Return the CLIP branch in float32."""
        visual = build_visual(self.clip_config())
        load_strictly(visual, read_safetensors(self.clip / "model.safetensors"), self.clip / "model.safetensors")
        return ClipBackbone(visual).eval()

    def egre_config(self) -> EgreConfig:
        """Return the sizes of the head."""
        return read_config(EgreConfig, self.head / "config.json")

    def egre(self) -> Egre:
        """Return the head in float32."""
        config = self.egre_config()
        head = Egre(config)
        path = self.head / "model.safetensors"
        official = read_safetensors(path)
        ours = {official_key(config.head, key): key for key in head.state_dict()}
        load_strictly(head, {ours.get(key, key): value for key, value in official.items()}, path)
        return head.eval()

    def records(self, cache: HashCache) -> tuple[SourceRecord, ...]:
        """Return what the manifest says about every set of weights."""
        parts: tuple[tuple[Role, str, Path], ...] = (
            ("vae", "sd", self.sd / "vae"),
            ("unet", "sd", self.sd / "unet"),
            ("scheduler", "sd", self.sd / "scheduler"),
            ("text_encoder", "sd", self.sd / "text_encoder"),
            ("clip", "clip", self.clip),
            ("head", "head", self.head),
        )
        return tuple(
            SourceRecord(role, self.names[group], folder_sha256(folder, cache), self.licences[group])
            for role, group, folder in parts
        )

    def _part(self, name: str) -> Path:
        folder = self.sd / name
        if not folder.is_dir():
            raise SourceError(f"{self.sd} has no folder {name!r}; give a Stable Diffusion in diffusers layout")
        return folder


def open_model_folder(folder: Path) -> ModelSources:
    """Return the sources of a model folder; raises SourceError when it is none."""
    card = read_json(folder / CARD)
    try:
        licence = str(card["licence"])
        return ModelSources(
            sd=folder,
            clip=folder / "clip",
            head=folder / "egre",
            names=dict.fromkeys(("sd", "clip", "head"), str(card["name"])),
            licences=dict.fromkeys(("sd", "clip", "head"), licence),
            name=str(card["name"]),
            description=str(card["description"]),
            calibration=card["calibration"],
            synthetic=bool(card["synthetic"]),
        )
    except KeyError as error:
        raise SourceError(f"{folder / CARD} lacks {error}; see lare2_ref/models/mini/{CARD} for an example") from None


def with_stable_diffusion(sources: ModelSources, location: str, *, revision: str | None, offline: bool) -> ModelSources:
    """Return the sources with another Stable Diffusion: a local folder in diffusers layout or a hub id.

    Raises:
        SourceError: neither a folder nor a repository that can be had.
    """
    folder = Path(location)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(
                snapshot_download(
                    location, revision=revision, allow_patterns=list(_HUB_PATTERNS), local_files_only=offline
                )
            )
        except Exception as error:  # the hub client has many error types, all meaning the same here
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise SourceError(
                f"{location} is neither a folder nor a model that can be downloaded ({reason}); check the name, or "
                "download it elsewhere and give the folder"
            ) from error
    return _replaced(sources, "sd", location, folder)


def with_clip(sources: ModelSources, folder: Path) -> ModelSources:
    """Return the sources with another CLIP tower: a folder with ``config.json`` and ``model.safetensors``."""
    return _replaced(sources, "clip", str(folder.name), folder)


def with_head(sources: ModelSources, folder: Path) -> ModelSources:
    """Return the sources with another EGRE head: a folder with ``config.json`` and ``model.safetensors``."""
    return _replaced(sources, "head", str(folder.name), folder)


def _replaced(sources: ModelSources, group: Literal["sd", "clip", "head"], name: str, folder: Path) -> ModelSources:
    """Swap one group of weights; a mixture counts as uncalibrated, and its licence is what the source says."""
    licence = "as stated by the source"
    return replace(
        sources,
        names={**sources.names, group: name},
        licences={**sources.licences, group: licence},
        calibration="uncalibrated" if sources.calibration == "calibrated" else sources.calibration,
        sd=folder if group == "sd" else sources.sd,
        clip=folder if group == "clip" else sources.clip,
        head=folder if group == "head" else sources.head,
    )


def default_model_folder() -> Path:
    """Return the folder of the small model that ships with the project."""
    return Path(__file__).parent / "models" / "mini"


def load_reference(
    sources: ModelSources, *, noise: Noise, prompt: str, timestep: int, policy: Preprocessing, image_size: int
) -> Lare2Reference:
    """Load all networks into one reference on the CPU in float32."""
    extractor = LareExtractor(
        sources.vae(),
        sources.unet(),
        sources.scheduler(),
        prompt_embeds=sources.prompt_embeds(prompt),
        timestep=timestep,
    )
    identity = Identity(sources.name, DecisionRule(sources.calibration))
    return Lare2Reference(
        extractor,
        sources.clip_backbone(),
        sources.egre(),
        noise=noise,
        policy=policy,
        image_size=image_size,
        identity=identity,
    )


def _pretrained(kind: Any, folder: Path) -> Any:  # noqa: ANN401 - diffusers' loaders are untyped
    """Load a diffusers network in float32 from its folder, whichever precision the file has."""
    variant = weights_variant(folder, "diffusion_pytorch_model")
    try:
        network = kind.from_pretrained(folder, torch_dtype=torch.float32, variant=variant, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"{folder} cannot be loaded ({str(error).splitlines()[0]}); download it again") from error
    return network.eval()
