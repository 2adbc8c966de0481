"""All weights of one detector: a Stable Diffusion, a CLIP ResNet and an EGRE head, loaded strictly and one at a time.

A *model folder* holds all three::

    lare2.json                     name, description, calibration, licence, synthetic
    unet/ vae/ scheduler/ text_encoder/ tokenizer/      as diffusers writes them
    clip/config.json model.safetensors                  ClipConfig and open_clip's visual tower
    egre/config.json model.safetensors                  EgreConfig and a head under the official key names
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from lare2_rt.bundle.noise import Noise
from lare2_rt.detection import Calibration, DecisionRule
from lare2_rt.host.integrity import HashCache
from lare2_rt.pixels.policy import Preprocessing

from .checkpoints import SourceError, read_json
from .clip_backbone import ClipBackbone, ClipConfig
from .clip_source import ClipCheckpoint, ClipFolder, ClipSource
from .egre import Egre, EgreConfig
from .head_source import HeadCheckpoint, HeadFolder, HeadSource
from .lare import LareExtractor, use_accurate_group_norms
from .reference import Identity, Lare2Reference
from .sd_single_file import SdSingleFile
from .sd_source import SdFolder, SdSource

CARD = "lare2.json"
Role = Literal["vae", "unet", "scheduler", "text_encoder", "clip", "head"]
OFFICIAL_NOTE = (
    "the head comes from a single checkpoint file: if it was trained with the official script, then with class prompts "
    "and unseeded noise per image, which this bundle's fixed prompt and noise do not repeat; calibrate before use"
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
    """The three sources and what the whole is called.

    Attributes:
        name, description: of the model as a whole; calibration: whether its verdicts mean anything.
        synthetic: True for weights that never saw an image; notes: sentences for the user and the manifest.
        demonstration: the model shows the tool, and its verdicts are marked so.
    """

    sd: SdSource
    clip: ClipSource
    head: HeadSource
    name: str
    description: str
    calibration: Calibration
    synthetic: bool = False
    notes: tuple[str, ...] = ()
    demonstration: bool = False

    def scheduler(self) -> DDPMScheduler:
        """Return the noise schedule."""
        return self.sd.scheduler()

    def vae_config(self) -> dict[str, Any]:
        """Return the autoencoder's configuration."""
        return self.sd.vae_config()

    def vae(self) -> AutoencoderKL:
        """Return the autoencoder in float32."""
        return self.sd.vae()

    def unet(self) -> UNet2DConditionModel:
        """Return the noise-prediction network in float32."""
        return self.sd.unet()

    def prompt_embeds(self, prompt: str) -> Tensor:
        """Encode a prompt: float32 [1,tokens,width]."""
        return self.sd.prompt_embeds(prompt)

    def clip_config(self) -> ClipConfig:
        """Return the geometry of the CLIP tower."""
        return self.clip.config()

    def clip_backbone(self) -> ClipBackbone:
        """Return the CLIP branch in float32."""
        return self.clip.backbone()

    def egre_config(self) -> EgreConfig:
        """Return the sizes of the head."""
        return self.head.config()

    def egre(self) -> Egre:
        """Return the head in float32."""
        return self.head.head()

    def notes_for(self, lare_id: str) -> tuple[str, ...]:
        """Return ``notes`` and, where the head was trained on the LaRE of another bundle, that."""
        trained_on = self.head.lare_id() if isinstance(self.head, HeadCheckpoint) else None
        if trained_on in (None, lare_id):
            return self.notes
        note = (
            f"the head was trained on LaRE {str(trained_on)[:12]} and this bundle computes {lare_id[:12]}: its Stable "
            "Diffusion, prompt, noise or preprocessing differ, so scores shift; build with those of the head's card, "
            "or train on features of this bundle"
        )
        return (*self.notes, note)

    def records(self) -> tuple[SourceRecord, ...]:
        """Return what the manifest says about every set of weights; hashes are remembered, so asking again is cheap."""
        cache = HashCache()
        sd = self.sd
        roles: tuple[Role, ...] = ("vae", "unet", "scheduler", "text_encoder")
        hashes = sd.hashes(cache)
        records = tuple(SourceRecord(role, sd.name, hashes[role], sd.licence, sd.revision) for role in roles)
        clip = SourceRecord("clip", self.clip.name, self.clip.sha256(cache), self.clip.licence)
        head = SourceRecord("head", self.head.name, self.head.sha256(cache), self.head.licence)
        cache.save()
        return (*records, clip, head)


def open_model_folder(folder: Path, *, allow_pickle: bool = False) -> ModelSources:
    """Return the sources of a model folder; raises SourceError when it is none.

    ``allow_pickle`` lets its Stable Diffusion have weights in ``.bin`` files, as in ``find_stable_diffusion``.
    """
    card = read_json(folder / CARD)
    try:
        name, licence = str(card["name"]), str(card["licence"])
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}", name):
            raise SourceError(
                f"{folder / CARD} has the name {name!r}", remedy="use letters, digits, dots, dashes and underscores"
            )
        if card["calibration"] not in ("untrained", "uncalibrated"):
            raise SourceError(
                f"{folder / CARD} has calibration {card['calibration']!r}", remedy="write 'untrained' or 'uncalibrated'"
            )
        return ModelSources(
            sd=SdFolder(folder, name, licence, allow_pickle=allow_pickle),
            clip=ClipFolder(folder / "clip", name, licence),
            head=HeadFolder(folder / "egre", name, licence),
            name=name,
            description=str(card["description"]),
            calibration=card["calibration"],
            synthetic=bool(card["synthetic"]),
            demonstration=bool(card.get("demonstration", False)),
        )
    except KeyError as error:
        raise SourceError(
            f"{folder / CARD} lacks {error}", remedy=f"see lare2_ref/models/mini/{CARD} for an example"
        ) from None


def combine(
    base: ModelSources | None, *, sd: SdSource | None, clip: ClipSource | None, head: HeadSource | None
) -> ModelSources:
    """Put sources together, taking what is not given from ``base``; the mixture counts as uncalibrated.

    An official checkpoint as the head brings the CLIP that it was trained with, unless another is given.

    Raises:
        SourceError: a source is missing and there is no base.
    """
    notes = base.notes if base is not None else ()
    if isinstance(sd, SdSingleFile):
        notes = (*notes, sd.note())
    if isinstance(head, HeadCheckpoint):
        notes = notes if head.lare_id() else (*notes, OFFICIAL_NOTE)
        if clip is None and head.has_clip():
            clip = ClipCheckpoint(head.path, head.licence)
    if base is not None:
        if sd is None and clip is None and head is None:
            return base
        changed: dict[str, Any] = {
            "calibration": "uncalibrated" if head is not None else base.calibration,
            "notes": notes,
        }
        merged = replace(base, sd=sd or base.sd, clip=clip or base.clip, head=head or base.head)
        given = [source.name for source in (sd, clip, head) if source is not None]
        changed["description"] = f"{base.name} with {', '.join(given)}"
        return replace(merged, **changed)
    if sd is None or clip is None or head is None:
        missing = [name for name, source in (("--sd", sd), ("--clip", clip), ("--head", head)) if source is None]
        raise SourceError(
            f"{' and '.join(missing)} missing", remedy="give all three, or a --model folder that has the rest"
        )
    description = f"{sd.name}, {clip.name}, {head.name}"
    return ModelSources(sd, clip, head, "lare2", description, "uncalibrated", notes=notes)


def default_model_folder() -> Path:
    """Return the folder of the small model that ships with the project."""
    return Path(__file__).parent / "models" / "mini"


def load_extractor(sources: ModelSources, *, prompt: str, timestep: int) -> LareExtractor:
    """Load Stable Diffusion's part of the reference on the CPU in float32."""
    embeds = sources.prompt_embeds(prompt)
    extractor = LareExtractor(
        sources.vae(), sources.unet(), sources.scheduler(), prompt_embeds=embeds, timestep=timestep
    )
    use_accurate_group_norms(extractor)
    return extractor


def load_reference(
    sources: ModelSources, *, noise: Noise, prompt: str, timestep: int, policy: Preprocessing, image_size: int
) -> Lare2Reference:
    """Load all networks into one reference on the CPU in float32."""
    extractor = load_extractor(sources, prompt=prompt, timestep=timestep)
    hashes = [f"{record.role} {record.sha256}" for record in sources.records()]
    weights = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    identity = Identity(sources.name, DecisionRule(sources.calibration, demonstration=sources.demonstration), weights)
    return Lare2Reference(
        extractor,
        sources.clip_backbone(),
        sources.egre(),
        noise=noise,
        policy=policy,
        image_size=image_size,
        identity=identity,
    )
