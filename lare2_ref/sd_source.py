"""Where a Stable Diffusion comes from: a folder in diffusers layout, local or downloaded, or a single file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from lare2_rt.bundle.manifest import PredictionType
from lare2_rt.errors import first_line
from lare2_rt.host.integrity import HashCache

from .checkpoints import SourceError, broken, folder_sha256, read_json
from .lare import encode_prompt
from .sd_single_file import SdSingleFile, open_single_file
from .weight_file import WeightFile

_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
_NETWORKS = ("unet", "vae", "text_encoder")
_LICENCE = "as stated by the source; Stable Diffusion 1.x: CreativeML OpenRAIL-M, 2.x: CreativeML Open RAIL++-M"
_Library = Literal["diffusers", "transformers"]
# What the libraries call their weights: safetensors and pickles.
_STEMS: dict[_Library, tuple[str, str]] = {
    "diffusers": ("diffusion_pytorch_model", "diffusion_pytorch_model"),
    "transformers": ("model", "pytorch_model"),
}
_LIBRARY: dict[str, _Library] = {"unet": "diffusers", "vae": "diffusers", "text_encoder": "transformers"}
_COMMIT = re.compile("[0-9a-f]{40}")


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
    """A folder as diffusers writes it: whole or sharded, in any precision; pickles only where they are allowed."""

    folder: Path
    name: str
    licence: str
    revision: str | None = None
    allow_pickle: bool = False

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
        """See ``SdSource``; without decoder where the folder has none, since LaRE never decodes."""
        vae = self._network(AutoencoderKL, "vae", torch_dtype=torch.float32)
        if any(parameter.is_meta for parameter in vae.parameters()):
            del vae.decoder, vae.post_quant_conv
        return vae

    def unet(self) -> UNet2DConditionModel:
        """See ``SdSource``."""
        return self._network(UNet2DConditionModel, "unet", torch_dtype=torch.float32)

    def prompt_embeds(self, prompt: str) -> Tensor:
        """See ``SdSource``."""
        from transformers import CLIPTextModel, CLIPTokenizer

        encoder = self._network(CLIPTextModel, "text_encoder", dtype=torch.float32, weights_only=True)
        tokenizer = _loaded(self._part("tokenizer"), CLIPTokenizer.from_pretrained)
        return encode_prompt(tokenizer, encoder, prompt)

    def hashes(self, cache: HashCache) -> dict[str, str]:
        """See ``SdSource``."""
        hashes = {role: folder_sha256(self._part(role), cache) for role in ("vae", "unet", "scheduler")}
        # The tokenizer decides the prompt's embedding as much as the encoder does.
        parts = (folder_sha256(self._part(part), cache) for part in ("text_encoder", "tokenizer"))
        return {**hashes, "text_encoder": hashlib.sha256(" ".join(parts).encode()).hexdigest()}

    def _network(self, kind: Any, part: str, **arguments: Any) -> Any:  # noqa: ANN401 - the libraries' loaders
        """Load a network strictly; ``arguments`` make it float32, whichever precision the file has."""
        folder = self._part(part)
        weights = _weights(folder, _LIBRARY[part], allow_pickle=self.allow_pickle)
        network, info = _loaded(folder, kind.from_pretrained, output_loading_info=True, **arguments, **weights)
        _refuse_misfits(folder, info)
        return _owned(network)

    def _part(self, name: str) -> Path:
        folder = self.folder / name
        if not folder.is_dir():
            raise SourceError(f"{self.folder} has no folder {name!r}", remedy="give a folder in diffusers layout")
        return folder


def find_stable_diffusion(
    location: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_pickle: bool = False,
    prediction_type: PredictionType | None = None,
) -> SdFolder | SdSingleFile:
    """Return the source behind a folder, a single file or a hub repository, of which only what is needed is downloaded.

    ``allow_pickle`` lets weights in ``.bin`` and ``.ckpt`` files be read, as plain tensors (``weights_only=True``).
    ``prediction_type`` is for a single file, which does not say it.

    Raises:
        SourceError: none of the three, or a single file that is no complete Stable Diffusion 1.x or 2.x.
    """
    path = Path(location)
    if path.is_file():
        if path.suffix != ".safetensors" and not allow_pickle:
            raise SourceError(
                f"{location} is a pickle, which can hold code",
                remedy="give the same model as .safetensors, or --allow-pickle to read this one as plain tensors",
            )
        return open_single_file(path, _LICENCE, prediction_type=prediction_type)
    if prediction_type is not None:
        raise SourceError(
            "--prediction-type is for a single file", remedy="leave it out, since a folder's scheduler says it"
        )
    if path.is_dir():
        return SdFolder(path, path.name, _LICENCE, allow_pickle=allow_pickle)
    folder = _download(location, revision=revision, offline=offline, allow_pickle=allow_pickle)
    # The hub's cache names a folder after the commit: a branch says less, and moves.
    found = folder.name if _COMMIT.fullmatch(folder.name) else revision
    return SdFolder(folder, location, _LICENCE, found, allow_pickle)


def _download(location: str, *, revision: str | None, offline: bool, allow_pickle: bool) -> Path:
    """Return the folder of a hub repository, with one set of weights for each network and nothing else.

    Repositories hold several: whole, without the average over the training, in half precision, as pickles. Half
    precision is fetched for networks that have no other, pickles for those that have no safetensors, when allowed.
    """
    if location.startswith("runwayml/"):
        raise SourceError(f"{location} was withdrawn", remedy="use stable-diffusion-v1-5/stable-diffusion-v1-5")
    from huggingface_hub import snapshot_download

    def fetch(patterns: list[str]) -> Path:
        return Path(snapshot_download(location, revision=revision, allow_patterns=patterns, local_files_only=offline))

    def bare(folder: Path) -> list[str]:
        return [part for part in _NETWORKS if not any((folder / part).glob("*.safetensors"))]

    stems = {part: _STEMS[_LIBRARY[part]][0] for part in _NETWORKS}
    always = [f"{part}/{pattern}" for part in _PARTS for pattern in ("*.json", "*.txt")]
    always += [f"{part}/{stem}{end}.safetensors" for part, stem in stems.items() for end in ("", "-*")]
    try:
        folder = fetch(always)
        if missing := bare(folder):
            folder = fetch([*always, *(f"{part}/{stems[part]}.fp16*.safetensors" for part in missing)])
        if allow_pickle and (missing := bare(folder)):
            folder = fetch([*always, *(f"{part}/*.bin" for part in missing)])
    except Exception as error:  # the hub client has many error types, all meaning the same here
        raise SourceError(
            f"{location} is neither a folder nor a file nor a model that can be downloaded ({first_line(error)})",
            remedy="check the name, or download it elsewhere and give the folder",
        ) from error
    return folder


def _weights(folder: Path, library: _Library, *, allow_pickle: bool) -> dict[str, Any]:
    """Return ``from_pretrained``'s arguments for the weights that a folder has: safetensors before pickles."""
    safe, pickled = _STEMS[library]

    def has(*patterns: str) -> bool:
        return any(next(folder.glob(pattern), None) for pattern in patterns)

    if has(f"{safe}.safetensors", f"{safe}.safetensors.index.json"):
        _check_shards(folder, f"{safe}.safetensors", f"{safe}.safetensors.index.json")
        return {"use_safetensors": True}
    if has(f"{safe}.fp16*.safetensors"):
        _check_shards(folder, f"{safe}.fp16.safetensors", f"{safe}.safetensors.index.fp16.json")
        return {"use_safetensors": True, "variant": "fp16"}
    variant = {} if has(f"{pickled}.bin", f"{pickled}.bin.index.json") else {"variant": "fp16"}
    files = sorted(folder.glob(f"{pickled}.fp16*.bin" if variant else f"{pickled}*.bin"))
    if not files:
        raise SourceError(
            f"{folder} has no weights (no {safe}.safetensors)",
            remedy="download it again, and if its source has only .bin files, with --allow-pickle",
        )
    if not allow_pickle:
        raise SourceError(
            f"{folder} has its weights only in pickles ({files[0].name}), which can hold code",
            remedy="download them as safetensors, or give --allow-pickle to read them as plain tensors",
        )
    for file in files:
        WeightFile(file).index()  # refuses code with our sentence; the libraries too read pickles with weights_only
    _check_shards(folder, f"{pickled}.bin", f"{pickled}.bin.index.json")
    return {"use_safetensors": False, **variant}


def _check_shards(folder: Path, whole: str, index: str) -> None:
    """Compare an index with its files: diffusers believes it, and leaves out what a shard does not have."""
    if (folder / whole).exists() or not (folder / index).exists():
        return
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise broken(f"{folder / index} has no weight_map")
    listed: dict[str, set[str]] = {}
    for key, name in weight_map.items():
        listed.setdefault(str(name), set()).add(key)
    for name, keys in sorted(listed.items()):
        if Path(name).name != name:
            raise broken(f"{folder / index} names {name!r}, which is no file of its folder")
        found = set(WeightFile(folder / name).shapes())
        for key in sorted(keys ^ found):
            misses = "lacks" if key in keys else "has unknown"
            raise broken(f"{folder / name} {misses} {key}, as its index has it")


def _loaded(folder: Path, load: Callable[..., Any], **arguments: Any) -> Any:  # noqa: ANN401 - the libraries' classes
    try:
        return load(folder, **arguments)
    except Exception as error:  # safetensors, diffusers and transformers each have their own
        raise broken(f"{folder} cannot be loaded ({first_line(error)})") from error


def _owned(network: Any) -> Any:  # noqa: ANN401 - the libraries' classes
    """Move weights out of a mapped file, tensor by tensor.

    There they lie at any address, and kernels round differently (5e-7 of LaRE) where a tensor is not aligned: the same
    weights would give other bits from another form of file.
    """
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = tensor.data.clone()
    return network.eval()


def _idle(key: str, misfit: str) -> bool:
    """Whether a key does not matter: LaRE never decodes, and older text encoders store the positions 0, 1, 2, …."""
    decodes = misfit == "missing_keys" and key.startswith(("decoder.", "post_quant_conv."))
    return decodes or key.endswith("position_ids")


def _refuse_misfits(folder: Path, info: dict[str, Any]) -> None:
    """Name the first key that does not fit: the libraries would fill a missing one with random numbers."""
    for misfit in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info.get(misfit) or () if not _idle(str(key), misfit))
        if keys:
            raise broken(f"{folder} has {misfit.replace('_', ' ')}: {keys[0]}")
