"""A Stable Diffusion 1.x or 2.x in one file of the original layout: ``.safetensors``, or ``.ckpt`` where allowed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn

from lare2_rt.bundle.manifest import PredictionType
from lare2_rt.host.integrity import HashCache

from .checkpoints import Shape, Sizes, SourceError
from .lare import encode_prompt
from .sd_geometry import FAMILIES, IGNORED, TEXT, UNET, VAE, SdGeometry, read_geometry
from .weight_file import WeightFile

# Lightning's step count tells the one 2.x checkpoint that predicts the noise, 512-base-ema.ckpt (as diffusers has it).
_EPSILON_STEP = 875_000
_WHOLE = "give a whole Stable Diffusion 1.x or 2.x"
_STANDIN = torch.int16  # some conversions copy, and 700 names are few
_State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class SdSingleFile:
    """``SdSource`` of one file; every network is read from it when asked for, and only that network.

    Attributes:
        prediction_type: what the UNet predicts; None takes what its family does.
    """

    path: Path
    licence: str
    prediction_type: PredictionType | None = None
    revision: None = None

    @property
    def name(self) -> str:
        """See ``SdSource``."""
        return self.path.name

    def scheduler(self) -> DDPMScheduler:
        """See ``SdSource``; the family's schedule, which the checkpoint's own buffers repeat."""
        return DDPMScheduler(**self._geometry().scheduler, prediction_type=self._predicts()[0])

    def vae_config(self) -> dict[str, Any]:
        """See ``SdSource``."""
        return dict(self._geometry().vae)

    def unet_config(self) -> dict[str, Any]:
        """See ``SdSource``."""
        return dict(self._geometry().unet)

    def prompt_tokens(self) -> int:
        """See ``SdSource``."""
        return int(self._geometry().text_encoder["max_position_embeddings"])

    def vae(self) -> AutoencoderKL:
        """See ``SdSource``."""
        return self._network(_vae(self._geometry()))

    def unet(self) -> UNet2DConditionModel:
        """See ``SdSource``."""
        return self._network(_unet(self._geometry()))

    def prompt_embeds(self, prompt: str) -> Tensor:
        """See ``SdSource``."""
        geometry = self._geometry()
        encoder = self._network(_text_encoder(geometry))
        tokens = geometry.text_encoder["max_position_embeddings"]
        return encode_prompt(clip_tokenizer(tokens, **geometry.tokenizer), encoder, prompt)

    def hashes(self, cache: HashCache) -> dict[str, str]:
        """See ``SdSource``; one file has one hash, whatever is read from it."""
        return dict.fromkeys(("vae", "unet", "scheduler", "text_encoder"), cache.sha256(self.path))

    def note(self) -> str:
        """Return the sentence that says what the UNet is taken to predict, and why."""
        predicted, reason = self._predicts()
        return f"{self.name} is taken as {FAMILIES[self._geometry().family]} predicting {predicted}: {reason}"

    def _geometry(self) -> SdGeometry:
        return read_geometry(WeightFile(self.path).shapes(), self.path)

    def _predicts(self) -> tuple[PredictionType, str]:
        geometry = self._geometry()
        if self.prediction_type is not None:
            return self.prediction_type, "as --prediction-type says"
        if geometry.family == "sd1":
            return "epsilon", "as Stable Diffusion 1.x does; another model's type needs --prediction-type"
        if WeightFile(self.path).index().global_step == _EPSILON_STEP:
            return "epsilon", "its training step is that of the 512-pixel base model"
        return "v_prediction", (
            "the file does not say, and the 768-pixel models do; for the 512-pixel base models pass "
            "--prediction-type epsilon"
        )

    def _network(self, part: _Part) -> Any:  # noqa: ANN401 - diffusers is untyped
        file = WeightFile(self.path)
        _check_part(part, file.shapes(), self.path)
        network = part.build()
        state = part.convert(file.read(part.owns), network)
        network.load_state_dict(state, assign=True)
        return network.eval()


@dataclass(frozen=True, slots=True)
class _Part:
    """One network of a checkpoint.

    Attributes:
        prefix: start of its tensors' names; unused: start of the names of those that it leaves out.
        make: builds the network; on_meta: whether it can be filled without having had memory.
        convert: gives the state dict of the network, in diffusers' names, from the checkpoint's tensors.
    """

    prefix: str
    make: Callable[[], nn.Module]
    convert: Callable[[_State, nn.Module], _State]
    unused: str | None = None
    on_meta: bool = True

    def owns(self, key: str) -> bool:
        """Whether the network has this tensor."""
        left_out = self.unused is not None and key.startswith(self.unused)
        return key.startswith(self.prefix) and not left_out and not IGNORED.fullmatch(key)

    def build(self) -> nn.Module:
        """Return the network before it is filled."""
        with torch.device("meta" if self.on_meta else "cpu"):
            return self.make()


def _unet(geometry: SdGeometry) -> _Part:
    def convert(state: _State, network: nn.Module) -> _State:
        return convert_ldm_unet_checkpoint(state, geometry.unet)  # type: ignore[no-any-return]

    return _Part(UNET, lambda: UNet2DConditionModel(**geometry.unet), convert)


def _vae(geometry: SdGeometry) -> _Part:
    def convert(state: _State, network: nn.Module) -> _State:
        return convert_ldm_vae_checkpoint(state, geometry.vae)  # type: ignore[no-any-return]

    return _Part(VAE, lambda: AutoencoderKL(**geometry.vae), convert)


def _text_encoder(geometry: SdGeometry) -> _Part:
    from transformers import CLIPTextConfig, CLIPTextModel

    prefix = TEXT[geometry.family]

    def convert(state: _State, network: nn.Module) -> _State:
        if geometry.family == "sd1":
            converted = convert_ldm_clip_checkpoint(state)
        else:
            converted = convert_open_clip_checkpoint(network, state, prefix=prefix)
        if not hasattr(network, "text_model"):  # transformers 5.6 took this level out
            converted = {key.removeprefix("text_model."): value for key, value in converted.items()}
        return converted  # type: ignore[no-any-return]

    def make() -> nn.Module:
        return CLIPTextModel(CLIPTextConfig(**geometry.text_encoder))  # type: ignore[no-any-return]

    # The positions 0, 1, 2, … are made with the network and are in no checkpoint.
    return _Part(prefix, make, convert, unused=geometry.unused, on_meta=False)


def check_shapes(shapes: Mapping[str, Shape], path: Path) -> None:
    """Compare every name and shape of a checkpoint with its networks', without a weight.

    Raises:
        SourceError: it is no such checkpoint, or a key is missing, unknown or misshapen.
    """
    geometry = read_geometry(shapes, path)
    parts = (_unet(geometry), _vae(geometry), _text_encoder(geometry))
    prefixes = tuple(part.prefix for part in parts)
    unknown = [key for key in shapes if not key.startswith(prefixes) and not IGNORED.fullmatch(key)]
    if unknown:
        raise SourceError(
            f"{path} has unknown {', '.join(unknown[:3])}", remedy="give a Stable Diffusion as it was published"
        )
    for part in parts:
        _check_part(part, shapes, path)


def open_single_file(path: Path, licence: str, *, prediction_type: PredictionType | None = None) -> SdSingleFile:
    """Return the source after checking every name and shape; raises SourceError."""
    check_shapes(WeightFile(path).shapes(), path)
    return SdSingleFile(path, licence, prediction_type)


def _check_part(part: _Part, shapes: Mapping[str, Shape], path: Path) -> None:
    """Run the conversion on stand-ins that carry their name's number and no memory; raises SourceError."""
    names = [key for key in shapes if part.owns(key)]
    if len(names) > torch.iinfo(_STANDIN).max:
        raise SourceError(f"{path} has {len(names)} tensors under {part.prefix}", remedy="give a Stable Diffusion")
    sizes = Sizes(shapes, path, "a whole Stable Diffusion")
    for name in names:
        cut = name.endswith((".in_proj_weight", ".in_proj_bias"))  # by the conversion, which wants its dimensions
        sizes.of(name, len(shapes[name]) if not cut else 2 if name.endswith("weight") else 1)
    with torch.device("meta"):
        network = part.make()
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    standins = {name: torch.tensor(i, dtype=_STANDIN).expand(shapes[name]) for i, name in enumerate(names)}
    converted = part.convert(standins, network)
    origins = {key: names[int(value.flatten()[0])] if value.numel() else key for key, value in converted.items()}
    unknown = sorted({origins[key] for key in converted if key not in expected} | set(names) - {*origins.values()})
    missing = [key for key in expected if key not in converted]
    if unknown or missing:
        found = [f"has unknown {', '.join(unknown[:3])}"] if unknown else []
        lost = [f"lacks what diffusers calls {', '.join(missing[:3])}"] if missing else []
        raise SourceError(f"{path} {' and '.join(found + lost)}", remedy=_WHOLE)
    for key, value in converted.items():
        if tuple(value.shape) != expected[key]:
            given, needed = list(value.shape), list(expected[key])
            raise SourceError(f"{path}: {origins[key]} has shape {given} where {needed} is needed", remedy=_WHOLE)


@lru_cache(maxsize=4)
def clip_tokenizer(tokens: int, *, pad_token: str) -> Any:  # noqa: ANN401 - transformers' class
    """Return transformers' CLIP tokenizer over the vocabulary that open_clip ships, which is OpenAI's.

    A checkpoint has no vocabulary; Stable Diffusion's is this one. Folders pad with the end of text in 1.x and with
    ``!`` in 2.x, whose number is 0.
    """
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    vocabulary = SimpleTokenizer()
    words = sorted(vocabulary.encoder, key=vocabulary.encoder.__getitem__)
    words[vocabulary.sot_token_id], words[vocabulary.eot_token_id] = start, end
    config = {
        "model_max_length": tokens,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": pad_token,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
        merges = "\n".join(" ".join(pair) for pair in vocabulary.bpe_ranks)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return CLIPTokenizer.from_pretrained(folder)
